// The pictures of a message: the tray of the composer, the strip of a sent message, the request's parts.

import { addIcons, h, icon } from "./dom.js";
import { addWords, number, say, t } from "./language.js";
import { MAX_PICTURE_COUNT, askAddress, fileProblem, fullProblem, isVideo, listenForFiles } from "./intake.js";
import { canvasOf, measure, preview } from "./previews.js";
import { gridWords, plan } from "./tiles.js";
import { takeFrames } from "./video.js";
import { takePicture } from "./camera.js";

addWords({
  en: {
    "pictures.add": "Add a picture",
    "pictures.how": "or drop it anywhere, or paste it",
    "pictures.menu": "Where the picture comes from",
    "pictures.file": "Files",
    "pictures.video": "Frames of a video",
    "pictures.camera": "Camera",
    "pictures.url": "Address",
    "pictures.list": "Pictures of this message",
    "pictures.card": "{label}, {size}. Opens the tiles.",
    "pictures.replace": "Replace {label}",
    "pictures.remove": "Remove {label}",
    "pictures.removed": "{label} was removed.",
    "pictures.moved": "{label} is now {place} of {count}.",
    "pictures.added": "{count} pictures in the message.",
    "pictures.addedOne": "1 picture in the message.",
    "pictures.unmeasured": "size not known here",
    "pictures.tokens": "{count} tokens",
    "pictures.sent": "Pictures that were sent",
    "pictures.dataURL": "data: URL",
  },
  zh: {
    "pictures.add": "添加图片",
    "pictures.how": "也可拖放到页面任意位置，或直接粘贴",
    "pictures.menu": "图片来源",
    "pictures.file": "文件",
    "pictures.video": "视频抽帧",
    "pictures.camera": "拍照",
    "pictures.url": "网址",
    "pictures.list": "本条消息的图片",
    "pictures.card": "{label}，{size}，点按查看图块",
    "pictures.replace": "替换 {label}",
    "pictures.remove": "移除 {label}",
    "pictures.removed": "已移除 {label}",
    "pictures.moved": "{label} 已移到第 {place} 位，共 {count} 张",
    "pictures.added": "本条消息有 {count} 张图片",
    "pictures.addedOne": "本条消息有 1 张图片",
    "pictures.unmeasured": "尺寸未知",
    "pictures.tokens": "{count} 个 token",
    "pictures.sent": "已发送的图片",
    "pictures.dataURL": "data: 网址",
  },
});

addIcons({
  plus: "M12 5v14M5 12h14",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  film: "M4 5h16v14H4zM8 5v14M16 5v14M4 9.7h4M4 14.3h4M16 9.7h4M16 14.3h4",
  camera: "M3 8h4l2-3h6l2 3h4v11H3zM12 10a3.2 3.2 0 1 0 0 6.4a3.2 3.2 0 0 0 0-6.4",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7L12 7M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7L12 17",
  replace: "M4 9h13M13 5l4 4-4 4M20 15H7M11 11l-4 4 4 4",
});

const MENU = { file: "picture", video: "film", camera: "camera", url: "link" };
const ACCEPTED = { file: "image/*,video/*,.heic,.heif,.tif,.tiff,.avif", video: "video/*" };
const MOVED = "application/x-internvl-picture";
const WAIT_MILLISECONDS = 30; // so that what is learnt of many pictures is told together
let count = 0;

function newPicture(kind, values) {
  const id = `${Date.now().toString(36)}-${++count}`;
  const defaults = { name: "", blob: null, url: "", width: 0, height: 0, number: 0 };
  return { id, kind, ...defaults, detail: "auto", cap: null, ...values };
}

const ofFile = (blob) => newPicture("file", { name: blob.name, blob });
const ofAddress = (url) => newPicture("url", { name: hostOf(url), url });
// One tile a frame, as InternVL was trained on videos.
const ofFrame = (blob, i) =>
  newPicture("frame", { name: blob.name, blob, number: i + 1, detail: "low" });

function hostOf(address) {
  const url = new URL(address);
  if (url.protocol === "data:") return t("pictures.dataURL");
  return url.host || url.pathname.split("/").pop();
}

/**
 * Returns what each picture is called beside the others, in their order: "Frame1" for a video's
 * frames, "Image-1" for pictures where there are several, "" for one alone.
 */
export function pictureLabels(pictures) {
  let place = 0;
  return pictures.map(({ kind, number: frame }) => {
    if (kind === "frame") return `Frame${frame}`;
    return pictures.length > 1 ? `Image-${++place}` : "";
  });
}

/** Returns the part of a chat request that holds a picture. */
export async function picturePart({ blob, url, detail, cap }) {
  const image = { url: blob ? await dataURL(blob) : url };
  if (cap) image.max_dynamic_patch = cap;
  else if (detail !== "auto") image.detail = detail;
  return { type: "image_url", image_url: image };
}

function dataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Returns a sent message's pictures as a list of buttons; `inspect` gets the one that is pressed. */
export function pictureStrip(pictures, { inspect }) {
  const names = pictureLabels(pictures);
  const list = h("ul", { class: "pictures-strip", label: "pictures.sent" });
  for (const [i, picture] of pictures.entries()) {
    const button = h("button", { type: "button", class: "pictures-show" }, thumbnail(picture));
    say(button, "pictures.card", spoken(picture, names[i]), "aria-label");
    button.addEventListener("click", () => inspect(picture, i));
    if (names[i]) button.append(h("span", { class: "pictures-label" }, names[i]));
    list.append(h("li", {}, button));
  }
  return list;
}

function spoken({ name, width, height }, label) {
  const size = width ? `${width} × ${height}` : t("pictures.unmeasured");
  return { label: [label, name].filter(Boolean).join(" "), size };
}

/** Returns a small square of a picture that fills itself once there is something to show. */
function thumbnail(picture) {
  const box = h("span", { class: "pictures-thumbnail" });
  fill(box, picture);
  return box;
}

async function fill(box, picture) {
  const bitmap = picture.blob && (await preview(picture.blob));
  if (bitmap) return box.append(canvasOf(bitmap));
  const words = picture.kind === "url" ? picture.name : formatOf(picture);
  box.append(icon(picture.kind === "url" ? "link" : "picture"), h("small", {}, words));
}

const formatOf = ({ name, blob }) =>
  (/\.(\w{2,5})$/.exec(name)?.[1] ?? blob.type.split("/")[1] ?? "").toUpperCase();

/**
 * The pictures of the message that is being written.
 *
 * Events: "change" when a picture, its order or what is known of one changes (`plan` of a picture is
 * what GET /v1/tiles says of it, null while that is not known); "problem", with a sentence as its
 * `detail`, when something was not taken.
 */
export class PictureTray extends EventTarget {
  #pictures = [];
  #cards = new Map();
  #inspector;
  #model;
  #key;
  #current = null; // whose card the Tab key comes to
  #timer = 0;
  #list = h("ul", { class: "pictures-list", label: "pictures.list" });
  #add = h("button", { type: "button", class: "pictures-add" }, icon("plus"));
  #how = h("span", { class: "pictures-how", words: "pictures.how" });
  #menu = h("div", { class: "pictures-menu", popover: "auto", role: "menu", label: "pictures.menu" });
  #input = h("input", { type: "file", hidden: true });
  #live = h("p", { class: "pictures-spoken", role: "status" });

  constructor({ element, inspector, model = () => "", key = () => "" }) {
    super();
    this.#inspector = inspector;
    this.#model = model;
    this.#key = key;
    this.#add.append(h("span", { words: "pictures.add" }));
    this.#fillMenu();
    this.#listenToList();
    element.classList.add("pictures");
    element.append(this.#list, this.#add, this.#how, this.#menu, this.#input, this.#live);
    this.#render();
  }

  /** The pictures in their order. */
  get pictures() {
    return [...this.#pictures];
  }

  /** Takes over pictures, e.g. those of a turn that is edited. */
  set(pictures) {
    this.#pictures = pictures.map((picture) => ({ ...picture }));
    this.#changed();
    for (const picture of this.#pictures) this.#learn(picture);
  }

  clear() {
    this.set([]);
  }

  /** Adds files; of a video the user first chooses the frames. */
  async add(files) {
    const fit = files.filter((file) => this.#accept(file));
    this.#insert(fit.filter((file) => !isVideo(file)).map(ofFile));
    for (const video of fit.filter(isVideo)) {
      if (this.#room === 0) return this.#problem(fullProblem(1));
      this.#insert((await takeFrames(video, this.#room)).map(ofFrame));
    }
  }

  /** Takes what is dropped on a window or pasted. */
  listen(target) {
    listenForFiles(target, (files) => this.add(files));
  }

  get #room() {
    return MAX_PICTURE_COUNT - this.#pictures.length;
  }

  #accept(file) {
    const problem = fileProblem(file);
    if (problem) this.#problem(problem);
    return !problem;
  }

  #problem(detail) {
    this.dispatchEvent(new CustomEvent("problem", { detail }));
  }

  #insert(pictures) {
    const taken = pictures.slice(0, this.#room);
    if (taken.length < pictures.length) this.#problem(fullProblem(pictures.length - taken.length));
    if (!taken.length) return;
    this.#pictures.push(...taken);
    this.#changed();
    this.#sayCount();
    for (const picture of taken) this.#learn(picture);
  }

  #sayCount() {
    const { length } = this.#pictures;
    say(this.#live, length === 1 ? "pictures.addedOne" : "pictures.added", { count: length });
  }

  /** Learns how large a picture is, and into which tiles it will be cut. */
  async #learn(picture) {
    if (picture.blob && !picture.width) Object.assign(picture, await measure(picture.blob));
    if (!this.#pictures.includes(picture)) return;
    this.#caption(picture);
    await this.#plan(picture);
  }

  async #plan(picture) {
    const { detail, cap } = picture;
    const answer = await plan(picture, this.#model(), this.#key()).catch(() => null);
    if (picture.detail !== detail || picture.cap !== cap) return;
    picture.plan = answer;
    this.#caption(picture);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#tell(), WAIT_MILLISECONDS);
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  #changed() {
    this.#render();
    this.#tell();
  }

  #render() {
    const pictures = this.#pictures;
    const focused = this.#cardOf(document.activeElement);
    for (const id of this.#cards.keys()) {
      if (!pictures.some((picture) => picture.id === id)) this.#cards.delete(id);
    }
    this.#list.replaceChildren(...pictures.map((picture) => this.#card(picture)));
    const names = pictureLabels(pictures);
    pictures.forEach((picture, i) => this.#name(picture, names[i]));
    this.#list.hidden = !pictures.length;
    this.#how.hidden = pictures.length > 0;
    this.#add.classList.toggle("pictures-add-more", pictures.length > 0);
    this.#add.disabled = this.#room === 0;
    this.#reach(pictures.some(({ id }) => id === this.#current) ? this.#current : pictures[0]?.id);
    if (focused && focused.isConnected) focused.querySelector("button").focus();
  }

  #cardOf(element) {
    const card = element?.closest?.("li");
    return card?.parentElement === this.#list ? card : null;
  }

  #card(picture) {
    if (this.#cards.has(picture.id)) return this.#cards.get(picture.id);
    const show = h("button", { type: "button", class: "pictures-show" }, thumbnail(picture));
    show.setAttribute("aria-keyshortcuts", "Alt+ArrowLeft Alt+ArrowRight Delete");
    show.append(h("span", { class: "pictures-label" }));
    const caption = h("span", { class: "pictures-caption" });
    const card = h("li", { class: "pictures-card", draggable: "true" }, show, caption);
    card.dataset.id = picture.id;
    show.addEventListener("click", () => this.#inspect(picture));
    card.append(this.#button("replace", picture), this.#button("remove", picture));
    this.#cards.set(picture.id, card);
    return card;
  }

  #button(act, picture) {
    const button = h("button", { type: "button", class: `pictures-${act}` });
    button.append(icon(act === "remove" ? "close" : act));
    const acts = { remove: () => this.#remove(picture), replace: () => this.#replace(picture) };
    button.addEventListener("click", acts[act]);
    return button;
  }

  #name(picture, name) {
    const card = this.#cards.get(picture.id);
    const values = spoken(picture, name);
    card.querySelector(".pictures-label").textContent = name;
    say(card.querySelector(".pictures-show"), "pictures.card", values, "aria-label");
    say(card.querySelector(".pictures-replace"), "pictures.replace", values, "aria-label");
    say(card.querySelector(".pictures-remove"), "pictures.remove", values, "aria-label");
    this.#caption(picture);
  }

  #caption(picture) {
    const caption = this.#cards.get(picture.id)?.querySelector(".pictures-caption");
    if (!caption) return;
    const { plan: tiles } = picture;
    caption.textContent = tiles ? `${gridWords(tiles)} · ${number(tiles.token_count)}` : "";
    if (tiles) say(caption, "pictures.tokens", { count: number(tiles.token_count) }, "title");
  }

  // The Tab key comes to one card; the arrow keys go to the others.
  #reach(id) {
    this.#current = id;
    for (const card of this.#list.children) {
      const isCurrent = card.dataset.id === id;
      card.querySelectorAll("button").forEach((button) => (button.tabIndex = isCurrent ? 0 : -1));
    }
  }

  #inspect(picture) {
    const onChange = () => this.#plan(picture);
    const [model, key] = [this.#model(), this.#key()];
    this.#inspector.open(picture, { editable: true, onChange, model, key });
  }

  #remove(picture) {
    const place = this.#pictures.indexOf(picture);
    const { label } = spoken(picture, pictureLabels(this.#pictures)[place]);
    this.#pictures.splice(place, 1);
    this.#changed();
    this.#focus(this.#pictures[place] ?? this.#pictures[place - 1]);
    say(this.#live, "pictures.removed", { label });
  }

  #focus(picture) {
    if (!picture) return this.#add.focus();
    this.#reach(picture.id);
    this.#cards.get(picture.id).querySelector("button").focus();
  }

  async #replace(picture) {
    const [file] = await this.#choose("image/*,.heic,.heif,.tif,.tiff,.avif", false);
    const place = this.#pictures.indexOf(picture);
    if (!file || place < 0 || !this.#accept(file)) return;
    const { detail, cap } = picture;
    const successor = { ...ofFile(file), detail, cap };
    this.#pictures[place] = successor;
    this.#changed();
    this.#focus(successor);
    await this.#learn(successor);
  }

  #move(picture, place) {
    const from = this.#pictures.indexOf(picture);
    const to = Math.max(0, Math.min(place, this.#pictures.length - 1));
    if (from === to) return;
    this.#pictures.splice(from, 1);
    this.#pictures.splice(to, 0, picture);
    this.#changed();
    const { label } = spoken(picture, "");
    say(this.#live, "pictures.moved", { label, place: to + 1, count: this.#pictures.length });
  }

  #fillMenu() {
    this.#add.popoverTargetElement = this.#menu;
    this.#add.setAttribute("aria-haspopup", "menu");
    for (const [kind, drawing] of Object.entries(MENU)) {
      const words = h("span", { words: `pictures.${kind}` });
      const item = h("button", { type: "button", role: "menuitem", tabindex: -1 }, icon(drawing), words);
      item.addEventListener("click", () => (this.#menu.hidePopover(), this.#take(kind)));
      this.#menu.append(item);
    }
    this.#menu.addEventListener("beforetoggle", () => this.#placeMenu());
    this.#menu.addEventListener("toggle", ({ newState }) => {
      if (newState === "open") this.#menu.firstElementChild.focus();
    });
    this.#menu.addEventListener("keydown", (event) => this.#menuKey(event));
  }

  #placeMenu() {
    const { left, top, bottom } = this.#add.getBoundingClientRect();
    const isLow = top > innerHeight / 2;
    const { style } = this.#menu;
    style.left = `${Math.max(8, Math.min(left, innerWidth - 240))}px`;
    style.top = isLow ? "auto" : `${bottom + 6}px`;
    style.bottom = isLow ? `${innerHeight - top + 6}px` : "auto";
  }

  #menuKey(event) {
    const items = [...this.#menu.children];
    const place = items.indexOf(document.activeElement);
    const last = items.length - 1;
    const places = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: last };
    if (event.key === "Tab") return this.#menu.hidePopover();
    if (!(event.key in places)) return;
    event.preventDefault();
    items.at(places[event.key] % items.length).focus();
  }

  async #take(kind) {
    if (kind === "url") return this.#takeOne(askAddress(), ofAddress);
    if (kind === "camera") return this.#takeOne(takePicture(), ofFile);
    await this.add(await this.#choose(ACCEPTED[kind], true));
  }

  async #takeOne(asked, make) {
    const given = await asked;
    if (given) this.#insert([make(given)]);
  }

  /** Returns the files that the user chooses. */
  #choose(accept, multiple) {
    const input = this.#input;
    Object.assign(input, { accept, multiple, value: "" });
    return new Promise((resolve) => {
      input.onchange = () => resolve([...input.files]);
      input.oncancel = () => resolve([]);
      input.click();
    });
  }

  #listenToList() {
    const list = this.#list;
    list.addEventListener("keydown", (event) => this.#pressed(event));
    list.addEventListener("focusin", ({ target }) => this.#reach(this.#cardOf(target).dataset.id));
    list.addEventListener("dragstart", (event) => this.#dragStart(event));
    list.addEventListener("dragover", (event) => this.#dragOver(event));
    list.addEventListener("drop", (event) => this.#drop(event));
    list.addEventListener("dragend", () => this.#dragEnd());
  }

  #pressed(event) {
    const card = this.#cardOf(event.target);
    const picture = this.#pictures.find(({ id }) => id === card.dataset.id);
    const place = this.#pictures.indexOf(picture);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const isRemoval = event.key === "Delete" || event.key === "Backspace";
    if (!step && !isRemoval) return;
    event.preventDefault();
    if (isRemoval) this.#remove(picture);
    else if (event.altKey) this.#move(picture, place + step);
    else this.#focus(this.#pictures[place + step] ?? picture);
  }

  #dragged = null;

  #dragStart(event) {
    const card = this.#cardOf(event.target);
    this.#dragged = this.#pictures.find(({ id }) => id === card.dataset.id);
    event.dataTransfer.setData(MOVED, this.#dragged.id);
    event.dataTransfer.effectAllowed = "move";
    card.classList.add("pictures-dragged");
  }

  #dragOver(event) {
    if (!this.#dragged) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "move";
    const [card, side] = this.#target(event);
    this.#mark(card, side);
  }

  /** Returns the card that the pointer is over, and on which side of its middle. */
  #target(event) {
    const card = this.#cardOf(event.target);
    if (!card) return [null, ""];
    const { left, width } = card.getBoundingClientRect();
    return [card, event.clientX < left + width / 2 ? "before" : "after"];
  }

  #mark(card, side) {
    for (const other of this.#list.children) delete other.dataset.drop;
    if (card) card.dataset.drop = side;
  }

  #drop(event) {
    if (!this.#dragged) return;
    event.preventDefault();
    const [card, side] = this.#target(event);
    if (!card) return;
    const from = this.#pictures.indexOf(this.#dragged);
    const gap = [...this.#list.children].indexOf(card) + (side === "after" ? 1 : 0);
    this.#move(this.#dragged, gap > from ? gap - 1 : gap);
  }

  #dragEnd() {
    this.#dragged = null;
    this.#mark(null);
    for (const card of this.#list.children) card.classList.remove("pictures-dragged");
  }
}
