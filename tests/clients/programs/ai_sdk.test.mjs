// Vercel's AI SDK with three of its providers: OpenAI's (responses), any compatible one's (chat),
// and Anthropic's (messages).
import assert from "node:assert/strict";
import test from "node:test";
import { load, model, perfect, picture, question, servers } from "./served.mjs";

const { generateText, streamText, generateObject, isStepCount, Output, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { z } = await load("zod");

const apiKey = "none";
const providers = {
  openai: (baseURL) => createOpenAI({ baseURL, apiKey })(model),
  "openai.chat": (baseURL) => createOpenAI({ baseURL, apiKey }).chat(model),
  "openai-compatible": (baseURL) =>
    createOpenAICompatible({
      name: "internvl",
      baseURL,
      apiKey,
      includeUsage: true,
      supportsStructuredOutputs: true,
    })(model),
  anthropic: (baseURL) => createAnthropic({ baseURL, apiKey })(model),
};
const messages = [
  {
    role: "user",
    content: [
      { type: "text", text: question },
      { type: "file", data: picture, mediaType: "image/png" },
    ],
  },
];
const Animal = z.object({ name: z.enum(["cat", "dog", "panda"]) });
const feed_animal = tool({
  description: "Feeds an animal.",
  inputSchema: z.object({ animal: z.enum(["cat", "dog", "panda"]) }),
});
const get_weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `It is sunny in ${city}.`,
});

for (const [provider, connected] of Object.entries(providers)) {
  for (const [name, url] of Object.entries(servers)) {
    const options = { model: connected(url), maxOutputTokens: 200, maxRetries: 0 };

    test(`${provider}: text [${name}]`, async () => {
      const { text, usage } = await generateText({ ...options, instructions: "Be brief.", messages });
      assert.match(text, /panda/);
      assert.ok(usage.outputTokens > 0);
    });

    test(`${provider}: stream [${name}]`, async () => {
      const { textStream, usage } = streamText({ ...options, messages });
      let text = "";
      for await (const piece of textStream) text += piece;
      assert.match(text, /panda/);
      assert.ok((await usage).outputTokens > 0);
    });

    test(`${provider}: object [${name}]`, async () => {
      const { object } = await generateObject({
        ...options,
        schema: Animal,
        prompt: "Name an animal.",
      });
      assert.ok(Animal.parse(object));
    });

    test(`${provider}: output [${name}]`, async () => {
      const { output } = await generateText({
        ...options,
        output: Output.object({ schema: Animal }),
        prompt: "Name an animal.",
      });
      assert.ok(Animal.parse(output));
    });

    test(`${provider}: forced call in a stream [${name}]`, async () => {
      const { toolCalls, finishReason } = streamText({
        ...options,
        tools: { feed_animal },
        toolChoice: "required",
        prompt: "Feed the animal.",
      });
      const [call] = await toolCalls;
      assert.equal(call.toolName, "feed_animal");
      assert.ok(call.input.animal);
      assert.equal(await finishReason, "tool-calls");
    });
  }

  for (const streamed of [false, true]) {
    test(`${provider}: loop of calls, streamed: ${streamed}`, async () => {
      const options = {
        model: connected(perfect),
        tools: { get_weather },
        stopWhen: isStepCount(5),
        prompt: "What is the weather in Paris?",
      };
      const text = streamed ? await streamText(options).text : (await generateText(options)).text;
      assert.match(text, /It is sunny in Paris\./);
    });
  }
}
