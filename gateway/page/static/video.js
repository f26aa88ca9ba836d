// A video's dialog: how many frames, which ones, and a look at them before they are taken.

import { addWords, say } from "./language.js";
import { mainButton, openDialog } from "./dialog.js";
import { frameOf } from "./camera.js";
import { h } from "./dom.js";

addWords({
  en: {
    "video.title": "Frames of a video",
    "video.player": "The video {name}",
    "video.count": "Frames",
    "video.how": "One from the middle of each of {count} equal parts.",
    "video.frames": "The frames that will be taken",
    "video.frame": "Frame {number} at {time} s",
    "video.take": "Add {count} frames",
    "video.takeOne": "Add 1 frame",
    "video.taking": "Taking frame {number} of {count}",
    "video.reading": "Reading the video.",
    "video.unreadable": "The browser cannot play {name}. Convert it to MP4 (H.264) or WebM.",
  },
  zh: {
    "video.title": "视频抽帧",
    "video.player": "视频 {name}",
    "video.count": "帧数",
    "video.how": "将视频等分为 {count} 段，取每段中间的一帧。",
    "video.frames": "将要抽取的帧",
    "video.frame": "第 {number} 帧，{time} 秒处",
    "video.take": "添加 {count} 帧",
    "video.takeOne": "添加 1 帧",
    "video.taking": "正在抽取第 {number} 帧，共 {count} 帧",
    "video.reading": "正在读取视频。",
    "video.unreadable": "浏览器无法播放 {name}。请转换为 MP4（H.264）或 WebM。",
  },
});

const DEFAULT_FRAME_COUNT = 6;
const MAX_FRAME_COUNT = 16;
const THUMBNAIL_HEIGHT = 120;
const FAR = 1e7; // seconds

/** Returns when the frames are, in seconds: the middles of equal parts. */
const frameTimes = (seconds, count) =>
  Array.from({ length: count }, (_, i) => (seconds * (i + 0.5)) / count);

/** Returns the frames that were chosen of a video as Files, in order; [] if none were. */
export function takeFrames(file, maxCount = MAX_FRAME_COUNT) {
  return new Promise((resolve) => new Video(file, Math.min(maxCount, MAX_FRAME_COUNT), resolve));
}

class Video {
  #file;
  #done;
  #url;
  #source; // seeks for frames while the player plays
  #dialog;
  #count;
  #turn = 0;
  #player;
  #slider;
  #output = h("output", { class: "pictures-value" });
  #how = h("p", { class: "pictures-note", role: "status", words: "video.reading" });
  #list = h("ol", { class: "pictures-frames", label: "video.frames" });
  #take = mainButton("video.takeOne", () => this.#taken());

  constructor(file, maxCount, done) {
    this.#file = file;
    this.#done = done;
    this.#url = URL.createObjectURL(file);
    this.#count = Math.min(DEFAULT_FRAME_COUNT, maxCount);
    this.#player = video(this.#url, {
      controls: true,
      label: ["video.player", { name: file.name }],
    });
    this.#slider = h("input", { type: "range", min: 1, max: maxCount, value: this.#count });
    this.#slider.addEventListener("input", () => this.#show());
    this.#take.disabled = this.#slider.disabled = true;
    this.#open();
    this.#start();
  }

  #open() {
    const count = h("label", { class: "pictures-slider" }, h("span", { words: "video.count" }));
    count.append(this.#slider, this.#output);
    const screen = h("div", { class: "pictures-screen" }, this.#player);
    const body = [screen, count, this.#how, this.#list];
    const onClose = () => this.#close();
    this.#dialog = openDialog({ title: "video.title", body, actions: [this.#take], onClose });
  }

  async #start() {
    try {
      this.#source = await loaded(this.#url);
    } catch {
      return say(this.#how, "video.unreadable", { name: this.#file.name });
    }
    this.#take.disabled = this.#slider.disabled = false;
    await this.#show();
  }

  /** Shows the frames of the count that is chosen; a later choice ends this one. */
  async #show() {
    const turn = ++this.#turn;
    const count = (this.#count = Number(this.#slider.value));
    this.#output.textContent = count;
    this.#sayTake();
    say(this.#how, "video.how", { count });
    const times = frameTimes(this.#source.duration, count);
    const places = times.map((time, i) => frame(i + 1, time));
    this.#list.replaceChildren(...places);
    for (const [i, time] of times.entries()) {
      await seek(this.#source, time);
      if (turn !== this.#turn) return;
      places[i].prepend(small(this.#source));
    }
  }

  #sayTake() {
    const count = this.#count;
    say(this.#take, count === 1 ? "video.takeOne" : "video.take", { count });
  }

  async #taken() {
    const turn = ++this.#turn;
    this.#take.disabled = this.#slider.disabled = true;
    const files = await this.#frames(turn).catch(() => null);
    if (turn !== this.#turn) return;
    if (!files) return say(this.#how, "video.unreadable", { name: this.#file.name });
    this.#done(files);
    this.#dialog.close();
  }

  async #frames(turn) {
    const files = [];
    for (const time of frameTimes(this.#source.duration, this.#count)) {
      say(this.#take, "video.taking", { number: files.length + 1, count: this.#count });
      await seek(this.#source, time);
      const blob = await frameOf(this.#source);
      if (turn !== this.#turn) return files;
      files.push(new File([blob], this.#name(files.length + 1), { type: blob.type }));
    }
    return files;
  }

  #name(number) {
    return `${this.#file.name.replace(/\.\w+$/, "")}-${String(number).padStart(2, "0")}.jpg`;
  }

  #close() {
    this.#turn++;
    for (const element of [this.#player, this.#source]) element?.removeAttribute("src");
    URL.revokeObjectURL(this.#url);
    this.#done([]); // Nothing happens where frames were taken.
  }
}

function video(src, properties = {}) {
  const element = h("video", { playsinline: true, preload: "auto", ...properties });
  element.muted = true;
  element.src = src;
  return element;
}

async function loaded(url) {
  const source = video(url);
  await once(source, "loadeddata");
  if (!source.videoWidth) throw new Error("no pictures, only sound");
  if (source.duration === Infinity) await findEnd(source);
  return source;
}

// A recording of a browser does not say how long it is: it is known once its end was looked for.
async function findEnd(source) {
  source.currentTime = FAR;
  while (source.duration === Infinity) await once(source, "durationchange");
}

async function seek(source, time) {
  source.currentTime = time;
  do await once(source, "seeked");
  while (source.seeking); // else the event was that of a seek before this one
}

function once(element, event) {
  return new Promise((resolve, reject) => {
    element.addEventListener(event, resolve, { once: true });
    element.addEventListener("error", reject, { once: true });
  });
}

const frame = (number, time) =>
  h("li", {}, h("span", { words: ["video.frame", { number, time: time.toFixed(1) }] }));

function small(source) {
  const width = Math.round((THUMBNAIL_HEIGHT * source.videoWidth) / source.videoHeight);
  const canvas = h("canvas", { width, height: THUMBNAIL_HEIGHT });
  canvas.getContext("2d").drawImage(source, 0, 0, width, THUMBNAIL_HEIGHT);
  return canvas;
}
