// Anthropic's SDK for Node: the calls of its own documentation.
import assert from "node:assert/strict";
import test from "node:test";
import { load, model, perfect, picture, question, servers } from "./served.mjs";

const { default: Anthropic } = await load("@anthropic-ai/sdk");
const { betaZodTool } = await load("@anthropic-ai/sdk/helpers/beta/zod");
const { z } = await load("zod");

const source = { type: "base64", media_type: "image/png", data: picture.toString("base64") };
const messages = [
  {
    role: "user",
    content: [
      { type: "image", source },
      { type: "text", text: question },
    ],
  },
];
const feed = {
  name: "feed_animal",
  description: "Feeds an animal.",
  input_schema: {
    type: "object",
    properties: { animal: { type: "string", enum: ["cat", "dog", "panda"] } },
    required: ["animal"],
    additionalProperties: false, // or a weak model goes on with properties of its own
  },
};
// The SDK adds /v1 itself.
const connected = (url) => new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: "none" });

for (const [name, url] of Object.entries(servers)) {
  const client = connected(url);

  test(`message [${name}]`, async () => {
    const message = await client.messages.create({ model, max_tokens: 100, messages });
    assert.match(message.content[0].text, /panda/);
    assert.equal(message.stop_reason, "end_turn");
  });

  test(`stream [${name}]`, async () => {
    const stream = client.messages.stream({ model, max_tokens: 100, messages });
    let text = "";
    stream.on("text", (piece) => (text += piece));
    const message = await stream.finalMessage();
    assert.match(text, /panda/);
    assert.equal(message.content[0].text, text);
    assert.ok(message.usage.output_tokens > 0);
  });

  test(`forced call in a stream [${name}]`, async () => {
    const stream = client.messages.stream({
      model,
      max_tokens: 200,
      messages: [{ role: "user", content: "Feed the animal." }],
      tools: [feed],
      tool_choice: { type: "tool", name: "feed_animal" },
    });
    const pieces = [];
    stream.on("inputJson", (piece) => pieces.push(piece));
    const { content, stop_reason } = await stream.finalMessage();
    assert.equal(stop_reason, "tool_use");
    assert.deepEqual(JSON.parse(pieces.join("")), content[0].input);
    assert.ok(content[0].input.animal);
  });
}

test("tokens are counted", async () => {
  const client = connected(servers.toy);
  const { input_tokens: count } = await client.messages.countTokens({ model, messages });
  assert.ok(count > 256);
});

for (const stream of [false, true]) {
  test(`tool runner, stream: ${stream}`, async () => {
    const weather = betaZodTool({
      name: "get_weather",
      description: "Tells the weather.",
      inputSchema: z.object({ city: z.string() }),
      run: ({ city }) => `It is sunny in ${city}.`,
    });
    const message = await connected(perfect).beta.messages.toolRunner({
      model,
      max_tokens: 100,
      messages: [{ role: "user", content: "What is the weather in Paris?" }],
      tools: [weather],
      stream,
    });
    assert.match(message.content[0].text, /It is sunny in Paris\./);
  });
}
