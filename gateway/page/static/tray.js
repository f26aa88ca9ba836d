// The composer's tray: the pictures of the message that is being written.

import {
  MAX_PICTURE_COUNT,
  PICTURE_FILES,
  askAddress,
  fileProblem,
  filesProblem,
  fullProblem,
  isVideo,
  listenForFiles,
} from "./intake.js";
import { addIcons, h, icon } from "./dom.js";
import { addWords, number, say } from "./language.js";
import { gridWords, plan } from "./tiles.js";
import { ofAddress, ofFile, ofFrame, pictureLabels, spoken, thumbnail } from "./picture.js";
import { Ordering } from "./ordering.js";
import { SourceMenu } from "./sources.js";
import { measure } from "./previews.js";
import { takeFrames } from "./video.js";
import { takePicture } from "./camera.js";

addWords({
  en: {
    "tray.how": "or drop it anywhere, or paste it",
    "tray.list": "Pictures of this message",
    "tray.show": "{label}, {size}: show its tiles",
    "tray.replace": "Replace {label}",
    "tray.remove": "Remove {label}",
    "tray.removed": "{label} was removed.",
    "tray.moved": "{label} is now {place} of {count}.",
    "tray.added": "{count} pictures in the message.",
    "tray.addedOne": "1 picture in the message.",
    "tray.caption": "{columns} × {rows} tiles, {tokens} tokens",
  },
  zh: {
    "tray.how": "也可拖放到页面任意位置，或直接粘贴",
    "tray.list": "本条消息的图片",
    "tray.show": "{label}，{size}：查看图块",
    "tray.replace": "替换 {label}",
    "tray.remove": "移除 {label}",
    "tray.removed": "已移除 {label}",
    "tray.moved": "{label} 已移到第 {place} 位，共 {count} 张",
    "tray.added": "本条消息有 {count} 张图片",
    "tray.addedOne": "本条消息有 1 张图片",
    "tray.caption": "{columns} × {rows} 个图块，{tokens} 个 token",
  },
});

addIcons({ replace: "M4 9h13M13 5l4 4-4 4M20 15H7M11 11l-4 4 4 4" });

const ACCEPTED = { file: `${PICTURE_FILES},video/*`, video: "video/*" };
const WAIT_MILLISECONDS = 30; // so that what is learnt of many pictures is told together

/**
 * The pictures of the message that is being written.
 *
 * Events: "change" when a picture, the order or what is known of a picture changes (its `plan` is
 * what GET /v1/tiles says of it, null while that is not known); "problem", with a sentence as its
 * `detail`, when something was not taken.
 */
export class PictureTray extends EventTarget {
  #pictures = [];
  #cards = new Map(); // by the pictures' ids
  #inspector;
  #model;
  #key;
  #timer = 0;
  #list = h("ul", { class: "pictures-list", label: "tray.list" });
  #sources = new SourceMenu((source) => this.#take(source));
  #how = h("span", { class: "pictures-how", words: "tray.how" });
  #input = h("input", { type: "file", hidden: true });
  #live = h("p", { class: "pictures-spoken", role: "status" });

  constructor({ element, inspector, model = () => "", key = () => "" }) {
    super();
    this.#inspector = inspector;
    this.#model = model;
    this.#key = key;
    const { button, menu } = this.#sources;
    element.classList.add("pictures");
    element.append(this.#list, button, this.#how, menu, this.#input, this.#live);
    this.#list.addEventListener("keydown", (event) => this.#pressed(event));
    this.#list.addEventListener("focusin", ({ target }) => this.#reach(target.closest("li")));
    new Ordering(this.#list, (card, place) => this.#move(this.#pictureOf(card), place));
    document.addEventListener("languagechange", () =>
      this.#pictures.forEach((picture) => this.#describe(picture)),
    );
    this.#render();
  }

  /** The pictures in their order. */
  get pictures() {
    return [...this.#pictures];
  }

  /** Takes over pictures, e.g. those of a turn that is edited. */
  set(pictures) {
    this.#letGo();
    this.#cards.clear(); // They are those of the pictures before, whatever their ids.
    this.#pictures = pictures.map((picture) => ({ ...picture }));
    this.#changed();
    for (const picture of this.#pictures) this.#learn(picture);
  }

  /** Adds files; of a video the user first chooses the frames. */
  async add(files) {
    const fit = this.#fit([...files]);
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

  /** Returns those of the files that can be taken. */
  #fit(files) {
    const problem = filesProblem(files);
    if (problem) this.#problem(problem);
    return files.filter((file) => !fileProblem(file));
  }

  #problem(detail) {
    this.dispatchEvent(new CustomEvent("problem", { detail }));
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  #changed() {
    this.#render();
    this.#tell();
  }

  async #take(source) {
    if (source === "url") return this.#takeOne(askAddress(), ofAddress);
    if (source === "camera") return this.#takeOne(takePicture(), ofFile);
    await this.add(await this.#choose(ACCEPTED[source], true));
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

  #insert(pictures) {
    const taken = pictures.slice(0, this.#room);
    if (taken.length < pictures.length) this.#problem(fullProblem(pictures.length - taken.length));
    if (!taken.length) return;
    this.#pictures.push(...taken);
    this.#changed();
    this.#list.lastElementChild.scrollIntoView({ block: "nearest" });
    const count = this.#pictures.length;
    say(this.#live, count === 1 ? "tray.addedOne" : "tray.added", { count });
    for (const picture of taken) this.#learn(picture);
  }

  /** Learns how large a picture is, and into which tiles it will be cut. */
  async #learn(picture) {
    if (picture.blob && !picture.width) {
      Object.assign(picture, await measure(picture.blob));
      const { isOpen, picture: shown } = this.#inspector;
      if (isOpen && shown === picture) this.#inspect(picture); // it was opened before that
    }
    await this.#plan(picture);
  }

  async #plan(picture) {
    const { detail, cap } = picture;
    const answer = await plan(picture, this.#model(), this.#key()).catch(() => null);
    if (picture.detail !== detail || picture.cap !== cap || !this.#has(picture)) return;
    picture.plan = answer;
    this.#describe(picture);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#tell(), WAIT_MILLISECONDS);
  }

  #has(picture) {
    return this.#pictures.includes(picture);
  }

  #inspect(picture) {
    const onChange = () => this.#plan(picture);
    this.#inspector.open(picture, { ...this.#question, editable: true, onChange });
  }

  get #question() {
    return { model: this.#model(), key: this.#key() };
  }

  // What was sent is still shown, and no more changed.
  #letGo() {
    const { picture } = this.#inspector;
    if (this.#has(picture) && this.#inspector.isOpen) this.#inspector.open(picture, this.#question);
  }

  #remove(picture) {
    const place = this.#pictures.indexOf(picture);
    const { label } = spoken(picture, pictureLabels(this.#pictures)[place]);
    if (this.#inspector.picture === picture) this.#inspector.close();
    this.#pictures.splice(place, 1);
    this.#changed();
    this.#focus(this.#pictures[place] ?? this.#pictures[place - 1]);
    say(this.#live, "tray.removed", { label });
  }

  async #replace(picture) {
    const [file] = this.#fit(await this.#choose(PICTURE_FILES, false));
    if (!file || !this.#has(picture)) return;
    const { detail, cap } = picture;
    const successor = { ...ofFile(file), detail, cap };
    this.#pictures[this.#pictures.indexOf(picture)] = successor;
    this.#changed();
    this.#focus(successor);
    await this.#learn(successor);
    if (this.#inspector.picture === picture && this.#inspector.isOpen) this.#inspect(successor);
  }

  #move(picture, place) {
    const count = this.#pictures.length;
    const from = this.#pictures.indexOf(picture);
    const to = Math.max(0, Math.min(place, count - 1));
    if (from === to) return;
    this.#pictures.splice(to, 0, ...this.#pictures.splice(from, 1));
    this.#changed();
    say(this.#live, "tray.moved", { label: spoken(picture, "").label, place: to + 1, count });
  }

  #pressed(event) {
    const picture = this.#pictureOf(event.target.closest("li"));
    const place = this.#pictures.indexOf(picture);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const isRemoval = event.key === "Delete" || event.key === "Backspace";
    if (!step && !isRemoval) return;
    event.preventDefault(); // Alt and an arrow go back or forward in the browser's history.
    if (isRemoval) this.#remove(picture);
    else if (event.altKey) this.#move(picture, place + step);
    else this.#focus(this.#pictures[place + step] ?? picture);
  }

  #pictureOf(card) {
    return this.#pictures.find(({ id }) => id === card.dataset.id);
  }

  #focus(picture) {
    const card = this.#cards.get(picture?.id);
    (card?.querySelector("button") ?? this.#sources.button).focus();
  }

  // The Tab key comes to one card; the arrow keys go to the others.
  #reach(current) {
    for (const card of this.#list.children) {
      const tabIndex = card === current ? 0 : -1;
      card.querySelectorAll("button").forEach((button) => Object.assign(button, { tabIndex }));
      card.classList.toggle("pictures-current", card === current);
    }
  }

  #render() {
    const pictures = this.#pictures;
    const focused = this.#list.contains(document.activeElement) && document.activeElement;
    const cards = new Map(pictures.map((picture) => [picture.id, this.#card(picture)]));
    this.#cards = cards;
    this.#list.replaceChildren(...cards.values());
    this.#list.hidden = !pictures.length;
    this.#how.hidden = pictures.length > 0;
    this.#sources.button.classList.toggle("pictures-add-more", pictures.length > 0);
    this.#sources.button.disabled = this.#room === 0;
    this.#reach(this.#list.querySelector(".pictures-current") ?? this.#list.firstElementChild);
    for (const picture of pictures) this.#describe(picture);
    if (focused && focused.isConnected) focused.focus();
  }

  #card(picture) {
    if (this.#cards.has(picture.id)) return this.#cards.get(picture.id);
    const card = h("li", { class: "pictures-card", data: { id: picture.id } });
    const show = button("show", () => this.#inspect(picture), thumbnail(picture));
    show.setAttribute("aria-keyshortcuts", "Alt+ArrowLeft Alt+ArrowRight Delete");
    show.append(h("span", { class: "pictures-label" }));
    const replace = button("replace", () => this.#replace(picture), icon("replace"));
    const remove = button("remove", () => this.#remove(picture), icon("close"));
    card.append(show, h("span", { class: "pictures-caption" }), replace, remove);
    return card;
  }

  #describe(picture) {
    const card = this.#cards.get(picture.id);
    const name = pictureLabels(this.#pictures)[this.#pictures.indexOf(picture)];
    for (const act of ["show", "replace", "remove"]) {
      say(
        card.querySelector(`.pictures-${act}`),
        `tray.${act}`,
        spoken(picture, name),
        "aria-label",
      );
    }
    card.querySelector(".pictures-label").textContent = name;
    this.#caption(card.querySelector(".pictures-caption"), picture.plan);
  }

  #caption(caption, tiles) {
    caption.textContent = "";
    if (!tiles) return;
    const { column_count: columns, row_count: rows } = tiles;
    const tokens = number(tiles.token_count);
    caption.textContent = `${gridWords(tiles)} · ${tokens}`;
    say(caption, "tray.caption", { columns, rows, tokens }, "title");
  }
}

const button = (act, click, content) =>
  h("button", { type: "button", class: `pictures-${act}`, on: { click } }, content);
