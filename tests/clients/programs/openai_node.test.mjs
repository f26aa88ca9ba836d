// openai for Node: the calls of its own documentation, of chat and of responses.
import assert from "node:assert/strict";
import test from "node:test";
import { load, model, perfect, picture, question, servers } from "./served.mjs";

const { default: OpenAI } = await load("openai");
const { zodFunction, zodResponseFormat, zodTextFormat } = await load("openai/helpers/zod");
const { z } = await load("zod");

const url = `data:image/png;base64,${picture.toString("base64")}`;
const messages = [
  {
    role: "user",
    content: [
      { type: "text", text: question },
      { type: "image_url", image_url: { url } },
    ],
  },
];
const input = [
  {
    role: "user",
    content: [
      { type: "input_text", text: question },
      { type: "input_image", image_url: url, detail: "auto" },
    ],
  },
];
const order = [{ role: "user", content: "Feed the animal." }];
const Animal = z.object({ name: z.enum(["cat", "dog", "panda"]) });
const feed = zodFunction({
  name: "feed_animal",
  description: "Feeds an animal.",
  parameters: z.object({ animal: z.enum(["cat", "dog", "panda"]) }),
});
const connected = (baseURL) => new OpenAI({ baseURL, apiKey: "none" });

for (const [name, baseURL] of Object.entries(servers)) {
  const client = connected(baseURL);

  test(`models [${name}]`, async () => {
    const { data } = await client.models.list();
    assert.equal(data[0].id, model);
  });

  test(`answer [${name}]`, async () => {
    const answer = await client.chat.completions.create({ model, messages });
    assert.match(answer.choices[0].message.content, /panda/);
  });

  test(`stream [${name}]`, async () => {
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

  test(`stream helper [${name}]`, async () => {
    const stream = client.chat.completions.stream({ model, messages });
    assert.match(await stream.finalContent(), /panda/);
  });

  test(`form [${name}]`, async () => {
    const answer = await client.chat.completions.parse({
      model,
      messages: [{ role: "user", content: "Name an animal." }],
      response_format: zodResponseFormat(Animal, "animal"),
    });
    assert.ok(Animal.parse(answer.choices[0].message.parsed));
  });

  test(`forced call in a stream [${name}]`, async () => {
    const stream = client.chat.completions.stream({
      model,
      messages: order,
      tools: [feed],
      tool_choice: "required",
    });
    let done = null;
    stream.on("tool_calls.function.arguments.done", (event) => (done = event));
    const { choices } = await stream.finalChatCompletion();
    assert.equal(choices[0].finish_reason, "tool_calls");
    assert.equal(done.arguments, choices[0].message.tool_calls[0].function.arguments);
    assert.ok(done.parsed_arguments.animal);
  });

  test(`completion [${name}]`, async () => {
    const answer = await client.completions.create({ model, prompt: "Hello", max_tokens: 8 });
    assert.ok(answer.choices[0].finish_reason);
  });

  test(`response [${name}]`, async () => {
    const response = await client.responses.create({ model, input });
    assert.match(response.output_text, /panda/);
  });

  test(`response's stream [${name}]`, async () => {
    const stream = client.responses.stream({ model, input });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    const response = await stream.finalResponse();
    assert.equal(kinds[0], "response.created");
    assert.equal(kinds.at(-1), "response.completed");
    assert.match(response.output_text, /panda/);
  });

  test(`response's form [${name}]`, async () => {
    const response = await client.responses.parse({
      model,
      input: "Name an animal.",
      text: { format: zodTextFormat(Animal, "animal") },
    });
    assert.ok(Animal.parse(response.output_parsed));
  });
}

for (const stream of [false, true]) {
  test(`runTools, stream: ${stream}`, async () => {
    const cities = [];
    const weather = {
      type: "function",
      function: {
        name: "get_weather",
        description: "Tells the weather.",
        parameters: {
          type: "object",
          properties: { city: { type: "string" } },
          required: ["city"],
        },
        parse: JSON.parse,
        function: ({ city }) => {
          cities.push(city);
          return `It is sunny in ${city}.`;
        },
      },
    };
    const runner = connected(perfect).chat.completions.runTools({
      model,
      messages: [{ role: "user", content: "What is the weather in Paris?" }],
      tools: [weather],
      stream,
    });
    assert.match(await runner.finalContent(), /It is sunny in Paris\./);
    assert.deepEqual(cities, ["Paris"]);
  });
}
