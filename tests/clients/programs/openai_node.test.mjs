// openai for Node: the calls of its own documentation.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import test from "node:test";
import { pathToFileURL } from "node:url";

// The package is in this client's environment, which is not beside this file.
const installed = createRequire(join(process.env.INTERNVL_ENVIRONMENT, "package.json"));
const { default: OpenAI } = await import(pathToFileURL(installed.resolve("openai")).href);

const client = new OpenAI({ baseURL: process.env.INTERNVL_URL, apiKey: "none" });
const model = process.env.INTERNVL_MODEL;
const picture = readFileSync(join(process.env.INTERNVL_PICTURES, "scene.png")).toString("base64");
const messages = [
  {
    role: "user",
    content: [
      { type: "text", text: "What do you see in the picture?" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
    ],
  },
];

test("models", async () => {
  const { data } = await client.models.list();
  assert.equal(data[0].id, model);
});

test("answer", async () => {
  const answer = await client.chat.completions.create({ model, messages });
  assert.match(answer.choices[0].message.content, /panda/);
});

test("stream", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.match(text, /panda/);
  assert.ok(usage.completion_tokens > 0);
});

test("stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages });
  assert.match(await stream.finalContent(), /panda/);
});
