// The pictures of a message: the composer's tray, the strip of a sent message, the request's parts.

import { addWords, say } from "./language.js";
import { pictureLabels, spoken, thumbnail } from "./picture.js";
import { h } from "./dom.js";

export { PictureTray } from "./tray.js";
export { pictureLabels, picturePart } from "./picture.js";

addWords({
  en: {
    "pictures.sent": "Pictures that were sent",
    "pictures.show": "{label}, {size}: show its tiles",
  },
  zh: {
    "pictures.sent": "已发送的图片",
    "pictures.show": "{label}，{size}：查看图块",
  },
});

/**
 * Returns a sent message's pictures as a list of buttons; `inspect` gets the picture that is
 * pressed, and its place.
 */
export function pictureStrip(pictures, { inspect }) {
  const names = pictureLabels(pictures);
  const buttons = pictures.map((picture, i) => {
    const button = h("button", { type: "button", class: "pictures-show" }, thumbnail(picture));
    say(button, "pictures.show", spoken(picture, names[i]), "aria-label");
    button.append(h("span", { class: "pictures-label" }, names[i]));
    button.addEventListener("click", () => inspect(picture, i));
    return h("li", {}, button);
  });
  return h("ul", { class: "pictures-strip", label: "pictures.sent" }, buttons);
}
