// A conversation as a chat request: turns, pictures, options.

import { pictureLabels, picturePart } from "./pictures.js";

/** What the options are named in a request, in the drawer's order; each with its server's default. */
export const SAMPLING = [
  { name: "temperature", standard: "0", min: 0, max: 2, step: 0.1 },
  { name: "top_p", standard: "1", min: 0, max: 1, step: 0.05 },
  { name: "top_k", standard: "", min: 1, step: 1 },
  { name: "min_p", standard: "0", min: 0, max: 1, step: 0.05 },
  { name: "seed", standard: "", step: 1 },
  { name: "max_completion_tokens", standard: "", min: 1, step: 1 },
  { name: "repetition_penalty", standard: "1", min: 0.1, max: 10, step: 0.05 },
  { name: "presence_penalty", standard: "0", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", standard: "0", min: -2, max: 2, step: 0.1 },
];

/** The options of a new conversation: all as the server has them. */
export const newOptions = () => ({ system: "", format: "text", schema: "", stop: "", sampling: {} });

/** Returns the whole chat request of these turns; the pictures' files are read. */
export async function chatRequest(turns, options, model) {
  const messages = options.system ? [{ role: "system", content: options.system }] : [];
  for (const turn of turns) messages.push(await message(turn));
  return {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...optionFields(options),
  };
}

/** Says whether the answer will be JSON. */
export const asksForJSON = (options) => options.format !== "text";

function optionFields(options) {
  const fields = { ...options.sampling };
  const stop = options.stop.split("\n").filter(Boolean);
  if (stop.length) fields.stop = stop;
  if (options.format === "json_object") fields.response_format = { type: "json_object" };
  if (options.format === "json_schema") {
    const json_schema = { name: "answer", schema: JSON.parse(options.schema) };
    fields.response_format = { type: "json_schema", json_schema };
  }
  return fields;
}

async function message({ role, text, pictures = [] }) {
  if (!pictures.length) return { role, content: text };
  const parts = [];
  for (const picture of pictures) parts.push(await picturePart(picture));
  parts.push({ type: "text", text: labels(pictures, text) + text });
  return { role, content: parts };
}

/** Several pictures are named in the prompt, as the model was taught: "Frame1: <image>". */
function labels(pictures, text) {
  const isAlone = pictures.length === 1 && pictures[0].kind !== "frame";
  if (isAlone || text.includes("<image>")) return "";
  return pictureLabels(pictures).map((label) => `${label}: <image>\n`).join("");
}
