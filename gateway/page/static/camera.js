// The camera's dialog: what it sees, and a shutter.

import { addWords, say } from "./language.js";
import { mainButton, openDialog } from "./dialog.js";
import { h } from "./dom.js";

addWords({
  en: {
    "camera.title": "Take a picture",
    "camera.seen": "What the camera sees",
    "camera.shutter": "Take picture",
    "camera.waiting": "Waiting for the camera. The browser may ask whether this page may use it.",
    "camera.insecure": "Browsers give the camera only to pages from https or localhost.",
    "camera.none": "No camera was found. Connect one, or choose a file.",
    "camera.denied":
      "The browser does not allow this page the camera. Allow it at the address bar.",
    "camera.busy": "The camera does not start; another program may be using it.",
  },
  zh: {
    "camera.title": "拍照",
    "camera.seen": "摄像头画面",
    "camera.shutter": "拍摄",
    "camera.waiting": "正在打开摄像头，浏览器可能会询问是否允许本页使用。",
    "camera.insecure": "只有通过 https 或 localhost 打开的页面才能使用摄像头。",
    "camera.none": "没有找到摄像头。请连接摄像头，或选择文件。",
    "camera.denied": "浏览器不允许本页使用摄像头，可在地址栏中更改权限。",
    "camera.busy": "摄像头无法启动，可能正被其他程序占用。",
  },
});

const WANTED = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
const REASONS = {
  NotFoundError: "camera.none",
  OverconstrainedError: "camera.none",
  NotAllowedError: "camera.denied",
};

/** Returns the picture that was taken as a File; null if none was. */
export function takePicture() {
  return new Promise((resolve) => new Camera(resolve));
}

class Camera {
  #video = h("video", { muted: true, playsinline: true, label: "camera.seen" });
  #note = h("p", { class: "pictures-note", role: "status", words: "camera.waiting" });
  #shutter = mainButton("camera.shutter", () => this.#take());
  #stream = null;
  #closed = false;
  #done;
  #dialog;

  constructor(done) {
    this.#done = done;
    this.#shutter.disabled = true;
    const body = [h("div", { class: "pictures-screen" }, this.#video), this.#note];
    const onClose = () => this.#close();
    this.#dialog = openDialog({ title: "camera.title", body, actions: [this.#shutter], onClose });
    this.#start();
  }

  async #start() {
    try {
      if (!navigator.mediaDevices) return say(this.#note, "camera.insecure");
      const stream = await navigator.mediaDevices.getUserMedia({ video: WANTED });
      if (this.#closed) return stop(stream);
      this.#stream = stream;
      this.#video.srcObject = stream;
      this.#video.muted = true;
      await this.#video.play();
      this.#note.remove();
      this.#shutter.disabled = false;
      this.#shutter.focus();
    } catch (error) {
      if (!this.#closed) say(this.#note, REASONS[error.name] ?? "camera.busy");
    }
  }

  async #take() {
    const blob = await frameOf(this.#video);
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "");
    this.#done(new File([blob], `camera-${time}.jpg`, { type: blob.type }));
    this.#dialog.close();
  }

  #close() {
    this.#closed = true;
    if (this.#stream) stop(this.#stream);
    this.#done(null); // Nothing happens where there is a picture already.
  }
}

const stop = (stream) => stream.getTracks().forEach((track) => track.stop());

/** Returns what a video shows now, at full size, as a JPEG file. */
export function frameOf(video) {
  const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
