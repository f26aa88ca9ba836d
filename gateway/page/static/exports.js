// What leaves the page and comes back: requests as texts that run, and whole conversations.

import { jsonBlob } from "./json.js";
import { addWords, t } from "./language.js";
import { addressOf } from "./picture.js";
import { SAMPLING, newOptions } from "./request.js";
import { newId } from "./store.js";

addWords({
  en: {
    "exports.tooLarge": "The file is too large: {size} MB, and at most {limit} MB can be read.",
    "exports.notJSON": "The file is not JSON, so it is no conversation of this page.",
    "exports.notOurs": "The file is no conversation that this page has exported.",
    "exports.version": "The file has version {version} of the format; this page reads version 1.",
    "exports.broken": "The file is damaged: {where} is not what it should be.",
    "exports.imported": "Imported conversation",
  },
  zh: {
    "exports.tooLarge": "文件过大：{size} MB，最多可读取 {limit} MB。",
    "exports.notJSON": "文件不是 JSON，不是本页面导出的对话。",
    "exports.notOurs": "文件不是本页面导出的对话。",
    "exports.version": "文件的格式版本为 {version}，本页面只能读取版本 1。",
    "exports.broken": "文件已损坏：{where} 的内容不正确。",
    "exports.imported": "导入的对话",
  },
});

/** Copies a text; returns whether that was possible. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text); // the clipboard is closed to pages that came by plain HTTP
  }
}

function copySelected(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "answer-unseen";
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}

/** Returns a request as JSON, complete, as it is sent. */
export const asJSON = (request) => shownJSON(request);

/**
 * Returns a request as a command line of bash.
 *
 * `names` has the name of each picture's file, in order: it is read from there, and its data URL
 * may end after the comma. A picture without a name stays as it is. With `hasKey` the key is that
 * of $INTERNVL_API_KEY.
 */
export function asCurl(request, origin, { names = [], hasKey = false } = {}) {
  const { marked, files } = withoutFiles(request, names);
  const words = [
    ...["curl", request.stream ? "-N" : "", quoted(`${origin}/v1/chat/completions`)],
    "-H 'Content-Type: application/json'",
    hasKey ? '-H "Authorization: Bearer $INTERNVL_API_KEY"' : "",
    `-d @- <<${files.length ? "JSON" : "'JSON'"}`,
  ];
  const command = words.filter(Boolean).join(" ");
  const body = files.length ? withPictures(marked, files) : marked;
  return [...files.map(readFile), command, body, "JSON\n"].join("\n");
}

/** Puts the base64 of a file into a variable, in the shell. */
const readFile = ({ index, name }) =>
  `picture${index}=$(base64 < ${quoted(path(name))} | tr -d '\\n')`;

/** Returns a request as a program for openai-python; the options are those of asCurl. */
export function asPython(request, origin, { names = [], hasKey = false } = {}) {
  const { marked, files } = withoutFiles(request, names);
  const write = new PythonWriter(new Map(files.map((file) => [file.mark, file])));
  const field = ([name, value]) => `    ${name}=${write.value(value, 1)},\n`;
  return [
    programHead(files.length > 0, hasKey),
    files.length ? DATA_URL_FUNCTION : "",
    `client = OpenAI(base_url=${write.value(`${origin}/v1`, 0)}, api_key=${apiKey(hasKey)})\n`,
    `${request.stream ? "stream" : "completion"} = client.chat.completions.create(\n`,
    ...argumentsOf(JSON.parse(marked)).map(field),
    ")\n",
    request.stream ? PRINT_STREAM : PRINT_COMPLETION,
  ].join("");
}

/** Returns a request's JSON with marks for the pictures that are read from files, and these. */
function withoutFiles(request, names) {
  const files = [];
  let place = 0;
  const mark = (key, value) => {
    if (key !== "image_url") return value;
    const name = names[place++];
    const type = /^data:([\w.+\/-]*)[^,]*;base64,/.exec(value?.url)?.[1];
    if (!name || type === undefined) return value;
    const file = { index: files.length + 1, name, type, mark: `file ${place} ${MARK}` };
    files.push(file);
    return { ...value, url: file.mark };
  };
  return { marked: shownJSON(request, mark), files };
}

// Stands for a picture until the text around it has been written; nobody writes it by chance.
const MARK = Math.random().toString(36).slice(2);

/** A name that begins with a dash is no option of a command. */
const path = (name) => (name.startsWith("-") ? `./${name}` : name);

// A terminal obeys controls that are pasted into it, also between quotes; other marks turn what is
// read around.
const CONTROLS = /[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/;
// Those that JSON leaves as they are.
const HIDDEN = /[\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
const written = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;

function quoted(text) {
  if (/^[\w@%+=:,./-]+$/.test(text)) return text;
  if (!CONTROLS.test(text)) return `'${text.replaceAll("'", "'\\''")}'`;
  return `$'${text.replace(/['\\]/g, "\\$&").replace(new RegExp(CONTROLS, "g"), written)}'`;
}

/** Returns JSON that shows all that is in it. */
const shownJSON = (value, replacer = null, space = 2) =>
  JSON.stringify(value, replacer, space).replace(HIDDEN, written);

/** Returns the body for a here-document in which $picture1 is expanded, and nothing else. */
function withPictures(body, files) {
  const escaped = body.replace(/[\\$`]/g, "\\$&");
  return files.reduce(
    (text, { index, type, mark }) =>
      text.replace(mark, () => `data:${type};base64,\${picture${index}}`),
    escaped,
  );
}

const programHead = (hasFiles, hasKey) => {
  const modules = [hasFiles ? "base64" : "", hasKey ? "os" : "", hasFiles ? "pathlib" : ""];
  const imports = modules.filter(Boolean).map((name) => `import ${name}\n`);
  return [...imports, imports.length ? "\n" : "", "from openai import OpenAI\n\n"].join("");
};

const apiKey = (hasKey) => (hasKey ? 'os.environ["INTERNVL_API_KEY"]' : '"none"');

const DATA_URL_FUNCTION = `
def data_url(name: str, media_type: str) -> str:
    """Returns a picture file as a data URL."""
    data = base64.b64encode(pathlib.Path(name).read_bytes()).decode()
    return f"data:{media_type};base64,{data}"


`;

const PRINT_STREAM = `for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;

const PRINT_COMPLETION = "print(completion.choices[0].message.content)\n";

// What openai-python's create() names; all else goes by extra_body.
const NAMED = new Set([
  ...["messages", "model", "temperature", "top_p", "seed", "stop", "n", "max_tokens"],
  ...["max_completion_tokens", "presence_penalty", "frequency_penalty", "logit_bias"],
  ...["logprobs", "top_logprobs", "response_format", "stream", "stream_options", "user"],
  ...["tools", "tool_choice", "metadata", "store"],
]);

function argumentsOf(request) {
  const entries = Object.entries(request);
  const extra = entries.filter(([name]) => !NAMED.has(name));
  const named = entries.filter(([name]) => NAMED.has(name));
  return extra.length ? [...named, ["extra_body", Object.fromEntries(extra)]] : named;
}

/** Writes JSON values as Python's, laid out as a formatter would. */
class PythonWriter {
  constructor(files) {
    this.files = files;
  }

  value(value, depth) {
    if (value === null) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value === "string") return this.#string(value);
    if (typeof value !== "object") return String(value);
    const isList = Array.isArray(value);
    const items = isList
      ? value.map((item) => this.value(item, depth + 1))
      : Object.entries(value).map(([name, item]) => this.#entry(name, item, depth + 1));
    return this.#all(items, isList ? "[]" : "{}", depth);
  }

  #string(text) {
    const file = this.files.get(text);
    // JSON's escapes are Python's.
    if (!file) return shownJSON(text);
    return `data_url(${shownJSON(file.name)}, ${shownJSON(file.type)})`;
  }

  #entry(name, item, depth) {
    return `${shownJSON(name)}: ${this.value(item, depth)}`;
  }

  #all(items, [opening, closing], depth) {
    const line = `${opening}${items.join(", ")}${closing}`;
    if (!line.includes("\n") && line.length + 4 * depth < 80) return line;
    const indent = "    ".repeat(depth);
    const lines = items.map((item) => `${indent}    ${item},\n`);
    return `${opening}\n${lines.join("")}${indent}${closing}`;
  }
}

const FORMAT = "internvl-conversation";
const VERSION = 1;

/** Returns a conversation as a JSON file, its pictures included. */
export const exportConversation = (conversation) =>
  jsonBlob({ format: FORMAT, version: VERSION, conversation }, (value) => value instanceof Blob, fileText);

/** Returns a picture's file as a data: URL. Its type may hold anything: one that is plain is written. */
const fileText = (blob) =>
  addressOf({
    name: blob.name ?? "",
    blob: blob.slice(0, blob.size, pictureType(blob.type)),
  });

// A blob of another type, opened by its address, would be a document of this page's origin.
const pictureType = (type) =>
  /^image\/(?!svg)[\w.+-]+$/.test(type) ? type : "application/octet-stream";

const MAX_FILE_BYTE_COUNT = 400 * 1024 * 1024;
const MAX_TURN_COUNT = 1000;
const MAX_PICTURE_COUNT = 1000;
const MAX_TILE_COUNT = 1000;
const MAX_TEXT_LENGTH = 4 * 1024 * 1024;

/**
 * Returns the conversation of an exported file, under a new id.
 *
 * @throws {Error} its message is a sentence that says what is wrong.
 */
export async function importConversation(file) {
  if (file.size > MAX_FILE_BYTE_COUNT) throw tooLarge(file.size);
  const content = await parsed(file);
  if (content?.format !== FORMAT) throw new Error(t("exports.notOurs"));
  const { version, conversation } = content;
  if (version !== VERSION) throw new Error(t("exports.version", { version: String(version) }));
  const { title, created, options, turns } = plainObject(conversation, "conversation");
  return {
    id: newId(),
    title: text(title ?? t("exports.imported"), "conversation.title", 500),
    created: timeOf(created) ?? Date.now(),
    ...(options ? { options: importedOptions(plainObject(options, "options")) } : {}),
    turns: await importedTurns(list(turns, "conversation.turns", MAX_TURN_COUNT)),
  };
}

/** Returns a time as Date.now() gives it; undefined of what no Date can be. */
function timeOf(value) {
  const time = ["string", "number"].includes(typeof value) ? new Date(value).getTime() : NaN;
  return Number.isNaN(time) ? undefined : time;
}

function tooLarge(size) {
  const megabytes = (count) => Math.ceil(count / 1024 / 1024);
  const values = { size: megabytes(size), limit: megabytes(MAX_FILE_BYTE_COUNT) };
  return new Error(t("exports.tooLarge", values));
}

async function parsed(file) {
  try {
    return JSON.parse(await file.text());
  } catch {
    throw new Error(t("exports.notJSON"));
  }
}

const broken = (where) => new Error(t("exports.broken", { where }));

function required(isRight, value, where) {
  if (!isRight) throw broken(where);
  return value;
}

const isPlainObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const plainObject = (value, where) => required(isPlainObject(value), value, where);
const text = (value, where, limit = MAX_TEXT_LENGTH) =>
  required(typeof value === "string" && value.length <= limit, value, where);
const list = (value, where, limit) =>
  required(Array.isArray(value) && value.length <= limit, value, where);
const oneOf = (value, choices, where) => required(choices.includes(value), value, where);
const count = (value, where) =>
  required(Number.isInteger(value) && value >= 0 && value < 1e6, value, where);

/** Options are texts, and numbers of the sampling. */
function importedOptions({ sampling, ...texts }) {
  const of = (values, names, type) =>
    Object.entries(values).filter(([name, value]) => names.includes(name) && typeof value === type);
  const known = of(texts, Object.keys(newOptions()), "string");
  for (const [name, value] of known) text(value, `options.${name}`);
  const sampled = SAMPLING.map(({ name }) => name);
  const numbers = isPlainObject(sampling) ? of(sampling, sampled, "number") : [];
  const whole = { ...newOptions(), ...Object.fromEntries(known) };
  oneOf(whole.format, ["text", "json_object", "json_schema"], "options.format");
  return { ...whole, sampling: Object.fromEntries(numbers) };
}

async function importedTurns(turns) {
  const imported = [];
  for (const [index, turn] of turns.entries()) {
    const where = `turns[${index}]`;
    imported.push(await importedTurn(plainObject(turn, where), where));
  }
  return imported;
}

async function importedTurn(turn, where) {
  const pictures = list(turn.pictures ?? [], `${where}.pictures`, MAX_PICTURE_COUNT);
  return {
    id: newId(),
    role: oneOf(turn.role, ["user", "assistant"], `${where}.role`),
    text: text(turn.text, `${where}.text`),
    pictures: await importedPictures(pictures, `${where}.pictures`),
    ...importedEnd(turn, where),
  };
}

const STATES = ["streaming", "done", "stopped", "failed"];

function importedEnd({ facts, state, error }, where) {
  return {
    ...(facts ? { facts: importedAnswer(plainObject(facts, `${where}.facts`)) } : {}),
    ...(state ? { state: oneOf(state, STATES, `${where}.state`) } : {}),
    ...(error ? { error: importedError(error) } : {}),
  };
}

async function importedPictures(pictures, where) {
  const imported = [];
  for (const [index, picture] of pictures.entries()) {
    const place = `${where}[${index}]`;
    imported.push(await importedPicture(plainObject(picture, place), place));
  }
  return imported;
}

async function importedPicture(picture, where) {
  const { kind, name, blob, url = "", width = 0, height = 0, detail, cap, number = 0 } = picture;
  const { plan = null, used } = picture;
  const isURL = oneOf(kind, ["file", "url", "frame"], `${where}.kind`) === "url";
  if (isURL) required(/^(https?|file|data):/i.test(text(url, `${where}.url`)), url, `${where}.url`);
  return {
    id: newId(),
    kind,
    name: text(name ?? "", `${where}.name`, 500),
    blob: isURL ? null : await blobOf(blob, `${where}.blob`),
    url: isURL ? url : "",
    width: count(width, `${where}.width`),
    height: count(height, `${where}.height`),
    detail: oneOf(detail ?? "auto", ["auto", "low", "high"], `${where}.detail`),
    cap: (cap ?? null) === null ? null : count(cap, `${where}.cap`),
    number: count(number, `${where}.number`),
    plan: importedGrid(plan),
    ...(used ? { used: importedGrid(used) } : {}),
  };
}

/** Returns a data URL's bytes. One picture at a time, so that the page can do something else. */
async function blobOf(url, where) {
  const head = /^data:([^,;]*);base64,/.exec(text(url, where, Infinity));
  await new Promise((resolve) => setTimeout(resolve));
  try {
    const bytes = bytesOf(url.slice(required(head, head, where)[0].length));
    return new Blob([bytes], { type: pictureType(head[1]) });
  } catch {
    throw broken(where);
  }
}

const bytesOf = (base64) =>
  Uint8Array.fromBase64?.(base64) ??
  Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

function importedError(error) {
  const { message, status, code } = isPlainObject(error) ? error : { message: String(error) };
  return {
    message: String(message ?? "").slice(0, 2000),
    status: Number.isInteger(status) ? status : 0,
    code: typeof code === "string" ? code.slice(0, 100) : null,
  };
}

function importedAnswer(facts) {
  const known = importedFacts(facts);
  const objects = (value) => (Array.isArray(value) ? value.filter(isPlainObject) : []);
  return { ...known, pictures: objects(known.pictures), toolCalls: objects(known.toolCalls) };
}

/** Returns what is told of a picture's tiles; null of more than any picture has. */
function importedGrid(value) {
  const told = isPlainObject(value) ? importedFacts(value) : null;
  const { column_count = 0, row_count = 0 } = told ?? {};
  const count = Math.max(1, column_count) * Math.max(1, row_count);
  return count <= MAX_TILE_COUNT ? told : null;
}

/** Facts hold numbers and short words alone; what is neither is left out. */
function importedFacts(value, depth = 0) {
  if (typeof value === "number" || typeof value === "boolean" || value === null) return value;
  if (typeof value === "string") return value.slice(0, MAX_TEXT_LENGTH);
  if (depth > 5) return null;
  const within = (item) => importedFacts(item, depth + 1);
  if (Array.isArray(value)) return value.slice(0, MAX_PICTURE_COUNT).map(within);
  const entries = Object.entries(value).slice(0, 100);
  return Object.fromEntries(entries.map(([name, item]) => [name, within(item)]));
}
