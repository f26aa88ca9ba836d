// Conversations that are kept in this browser, and nowhere else.

import { addWords, t } from "./language.js";

addWords({
  en: {
    "store.none": "This browser keeps nothing here: conversations are gone when the page is closed.",
    "store.full": "The browser has no room left: this conversation is gone when the page is closed.",
  },
  zh: {
    "store.none": "当前浏览器不允许保存数据，关闭页面后对话将丢失。",
    "store.full": "浏览器存储空间不足，关闭页面后此对话将丢失。",
  },
});

/** Tells, by an event "problem" whose detail is a sentence, that something is not kept; once. */
export const storeProblems = new EventTarget();

const NAME = "conversations";
const inMemory = new Map();
const told = new Set();
let database = null;

/** Returns an id for a conversation or a turn: by plain HTTP there is no crypto.randomUUID. */
export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(36)).join("");

/** Keeps a conversation: {id, title, created, turns}. */
export async function save(conversation) {
  inMemory.delete(conversation.id);
  try {
    await run("readwrite", (kept) => kept.put(conversation));
  } catch (error) {
    inMemory.set(conversation.id, conversation);
    tell(error?.name === "QuotaExceededError" ? "store.full" : "store.none");
  }
}

/** Returns the conversation of an id, or undefined. */
export async function load(id) {
  return inMemory.get(id) ?? (await run("readonly", (kept) => kept.get(id)).catch(() => undefined));
}

/** Returns {id, title, created} of all conversations, the newest first. */
export async function list() {
  const stored = await run("readonly", (kept) => kept.getAll()).catch(() => []);
  const all = new Map([...stored, ...inMemory.values()].map((entry) => [entry.id, entry]));
  return [...all.values()]
    .map(({ id, title, created }) => ({ id, title, created }))
    .sort((one, other) => new Date(other.created) - new Date(one.created));
}

/** Forgets the conversation of an id. */
export async function remove(id) {
  inMemory.delete(id);
  await run("readwrite", (kept) => kept.delete(id)).catch(() => {});
}

/** Forgets all conversations. */
export async function clear() {
  inMemory.clear();
  await run("readwrite", (kept) => kept.clear()).catch(() => {});
}

function tell(key) {
  if (told.has(key)) return;
  told.add(key);
  storeProblems.dispatchEvent(new CustomEvent("problem", { detail: t(key) }));
}

/** Runs one request in a transaction of its own; what is written is on the disk afterwards. */
async function run(mode, ask) {
  database ??= open().catch((error) => {
    database = null; // so that the next one tries again
    throw error;
  });
  const transaction = (await database).transaction(NAME, mode);
  const request = ask(transaction.objectStore(NAME));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error ?? request.error);
    transaction.onerror = () => reject(request.error);
  });
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("internvl", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(NAME, { keyPath: "id" });
    request.onsuccess = () => resolve(closing(request.result));
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new DOMException("blocked", "InvalidStateError"));
  });
}

/** A page that is opened with a newer form of the database is not kept waiting by this one. */
function closing(opened) {
  opened.onversionchange = () => {
    opened.close();
    database = null;
  };
  opened.onclose = () => (database = null);
  return opened;
}
