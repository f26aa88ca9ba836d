// How pictures come in besides the buttons: which files are taken, drop, paste, and an address.

import { addWords, say, sayAnew, t } from "./language.js";
import { mainButton, openDialog } from "./dialog.js";
import { h, icon } from "./dom.js";

addWords({
  en: {
    "intake.drop": "Drop pictures or videos",
    "intake.kind": "{name} is neither a picture nor a video that can be used here.",
    "intake.large":
      "{name} has {size} MB; the limit is {limit} MB. Make it smaller, or save it as JPEG.",
    "intake.empty": "{name} is an empty file.",
    "intake.others": "{count} other files were not taken either.",
    "intake.full": "A request takes {limit} pictures; {count} more were left out.",
    "intake.addressTitle": "Picture by address",
    "intake.address": "Address of the picture",
    "intake.addressHow": "The gateway fetches it when you ask; this page does not load it.",
    "intake.addressAdd": "Add picture",
    "intake.addressWrong":
      "That is no address of a picture: it begins with https:, http:, data: or file:.",
  },
  zh: {
    "intake.drop": "松开鼠标，添加图片或视频",
    "intake.kind": "“{name}”不是可用的图片或视频。",
    "intake.large": "“{name}”大小为 {size} MB，上限为 {limit} MB。请缩小图片，或另存为 JPEG。",
    "intake.empty": "“{name}”是空文件。",
    "intake.others": "另有 {count} 个文件未添加。",
    "intake.full": "一次请求最多 {limit} 张图片，其余 {count} 张未添加。",
    "intake.addressTitle": "通过网址添加图片",
    "intake.address": "图片网址",
    "intake.addressHow": "提问时由网关获取，本页面不会加载它。",
    "intake.addressAdd": "添加图片",
    "intake.addressWrong": "这不是图片网址，网址应以 https:、http:、data: 或 file: 开头。",
  },
});

export const MAX_PICTURE_COUNT = 64;
export const PICTURE_FILES = "image/*,.heic,.heif,.tif,.tiff,.avif";
const MIB = 1024 * 1024;
const MAX_MIB = 48;
// Browsers do not know the type of all files that the vision service decodes.
const PICTURE_NAME = /\.(jpe?g|png|webp|bmp|gif|tiff?|avif|heic|heif)$/i;
const MAX_TOLD_COUNT = 3;
const SCHEMES = ["http:", "https:", "data:", "file:"];

export const isVideo = (file) => file.type.startsWith("video/");
const isPicture = (file) =>
  (file.type.startsWith("image/") && !file.type.includes("svg")) || PICTURE_NAME.test(file.name);

/** Returns why a file cannot be taken, as a sentence; null if it can. */
export function fileProblem(file) {
  const { name, size } = file;
  if (isVideo(file)) return null; // Only its frames are sent.
  if (!isPicture(file)) return t("intake.kind", { name });
  if (size === 0) return t("intake.empty", { name });
  if (size <= MAX_MIB * MIB) return null;
  return t("intake.large", { name, size: Math.ceil(size / MIB), limit: MAX_MIB });
}

/** Returns why files cannot be taken, in a few sentences. */
export function filesProblem(files) {
  const problems = files.map(fileProblem).filter(Boolean);
  const told = problems.slice(0, MAX_TOLD_COUNT);
  const count = problems.length - told.length;
  return [...told, ...(count ? [t("intake.others", { count })] : [])].join(" ");
}

export const fullProblem = (count) => t("intake.full", { limit: MAX_PICTURE_COUNT, count });

/** Gives `take` the files that are dropped on a window or pasted; shows a hint while dragging. */
export function listenForFiles(target, take) {
  const hint = h(
    "div",
    { class: "pictures-drop" },
    icon("picture"),
    h("p", { words: "intake.drop" }),
  );
  const show = (shown) => (shown ? (sayAnew(hint), document.body.append(hint)) : hint.remove());
  const onFiles = (event, act) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    act(event.dataTransfer);
  };
  target.addEventListener("dragenter", (event) => onFiles(event, () => show(true)));
  target.addEventListener("dragover", (event) =>
    onFiles(event, (data) => (data.dropEffect = "copy")),
  );
  target.addEventListener("dragleave", (event) => event.relatedTarget ?? show(false));
  target.addEventListener("drop", (event) =>
    onFiles(event, (data) => (show(false), take([...data.files]))),
  );
  target.addEventListener("paste", (event) => paste(event, take));
}

function paste(event, take) {
  const { files, types } = event.clipboardData ?? { files: [], types: [] };
  // Programs for text and tables put a picture of what was copied beside it.
  const isText = types.includes("text/plain") && types.includes("text/html");
  if (!files.length || isText) return;
  event.preventDefault();
  take([...files]);
}

/** Returns the address of a picture that was typed in; null if none was. */
export function askAddress() {
  return new Promise((resolve) => {
    const { input, note, body } = addressForm();
    const add = () => {
      if (!isAddress(input.value)) return wrong(input, note);
      resolve(input.value.trim());
      dialog.close();
    };
    onEnter(input, add);
    const actions = [mainButton("intake.addressAdd", add)];
    const onClose = () => resolve(null);
    const dialog = openDialog({ title: "intake.addressTitle", body, actions, onClose });
    input.focus();
  });
}

function addressForm() {
  const note = h("p", { class: "pictures-note", id: "pictures-address-note", role: "status" });
  const off = { autocomplete: "off", autocapitalize: "off", spellcheck: "false" };
  const input = h("input", { type: "text", id: "pictures-address", inputmode: "url", ...off });
  input.setAttribute("aria-describedby", note.id);
  say(note, "intake.addressHow");
  const label = h("label", { for: input.id, words: "intake.address" });
  return { input, note, body: [h("div", { class: "pictures-field" }, label, input), note] };
}

function onEnter(input, act) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
    event.preventDefault(); // else the button that gets the focus back is pressed by it
    act();
  });
}

function wrong(input, note) {
  say(note, "intake.addressWrong");
  note.classList.add("pictures-problem");
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

function isAddress(text) {
  return URL.canParse(text.trim()) && SCHEMES.includes(new URL(text.trim()).protocol);
}
