// The button that adds pictures, and its menu of where they come from.

import { addIcons, h, icon } from "./dom.js";
import { addWords } from "./language.js";

addWords({
  en: {
    "sources.add": "Add a picture",
    "sources.menu": "Where the picture comes from",
    "sources.file": "Picture files",
    "sources.video": "Frames of a video",
    "sources.camera": "Camera",
    "sources.url": "Web address",
  },
  zh: {
    "sources.add": "添加图片",
    "sources.menu": "图片来源",
    "sources.file": "图片文件",
    "sources.video": "视频抽帧",
    "sources.camera": "拍照",
    "sources.url": "图片网址",
  },
});

addIcons({
  plus: "M12 5v14M5 12h14",
  film: "M4 5h16v14H4zM8 5v14M16 5v14M4 9.7h4M4 14.3h4M16 9.7h4M16 14.3h4",
  camera: "M3 8h4l2-3h6l2 3h4v11H3zM12 10a3.2 3.2 0 1 0 0 6.4a3.2 3.2 0 0 0 0-6.4",
});

const SOURCES = { file: "picture", video: "film", camera: "camera", url: "link" };
const MENU_WIDTH = 232;
const GAP = 6;

export class SourceMenu {
  button = h("button", { type: "button", class: "pictures-add" }, icon("plus"));
  menu = h("div", { class: "pictures-menu", popover: "auto", role: "menu", label: "sources.menu" });

  /** `take` gets the source that was chosen: "file", "video", "camera" or "url". */
  constructor(take) {
    this.button.append(h("span", { words: "sources.add" }));
    this.button.popoverTargetElement = this.menu;
    this.button.setAttribute("aria-haspopup", "menu");
    this.menu.append(...Object.keys(SOURCES).map((source) => this.#item(source, take)));
    this.menu.addEventListener("beforetoggle", () => this.#place());
    this.menu.addEventListener("toggle", ({ newState }) => {
      if (newState === "open") this.menu.firstElementChild.focus();
    });
    this.menu.addEventListener("keydown", (event) => this.#pressed(event));
  }

  #item(source, take) {
    const words = h("span", { words: `sources.${source}` });
    const properties = { type: "button", role: "menuitem", tabindex: -1 };
    const item = h("button", properties, icon(SOURCES[source]), words);
    item.addEventListener("click", () => {
      this.menu.hidePopover();
      take(source);
    });
    return item;
  }

  /** Puts the menu where there is room: the button is often at the window's lower edge. */
  #place() {
    const { left, top, bottom } = this.button.getBoundingClientRect();
    const isLow = top > innerHeight / 2;
    const { style } = this.menu;
    style.left = `${Math.max(8, Math.min(left, innerWidth - MENU_WIDTH - 8))}px`;
    style.top = isLow ? "auto" : `${bottom + GAP}px`;
    style.bottom = isLow ? `${innerHeight - top + GAP}px` : "auto";
  }

  #pressed(event) {
    const items = [...this.menu.children];
    const place = items.indexOf(document.activeElement);
    const places = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: -1 };
    if (event.key === "Tab") this.menu.hidePopover();
    if (!(event.key in places)) return;
    event.preventDefault();
    items.at(places[event.key] % items.length).focus();
  }
}
