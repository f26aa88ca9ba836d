// A small modal dialog: a title, what it is about, and the buttons below it.

import { addWords } from "./language.js";
import { h, icon } from "./dom.js";

addWords({
  en: { "dialog.close": "Close", "dialog.cancel": "Cancel" },
  zh: { "dialog.close": "关闭", "dialog.cancel": "取消" },
});

let number = 0;

/** Opens a dialog and returns it. It is gone from the page once closed, after `onClose`. */
export function openDialog({ title, body, actions = [], onClose = () => {} }) {
  const id = `pictures-dialog-${++number}`;
  const close = h("button", {
    type: "button",
    class: "pictures-icon-button",
    label: "dialog.close",
  });
  close.append(icon("close"));
  const head = h("div", { class: "pictures-dialog-head" }, h("h2", { id, words: title }), close);
  const foot = h(
    "div",
    { class: "pictures-dialog-foot" },
    cancelButton(() => dialog.close()),
    actions,
  );
  const parts = [head, h("div", { class: "pictures-dialog-body" }, body), foot];
  const dialog = h("dialog", { class: "pictures-dialog", "aria-labelledby": id }, parts);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => (onClose(), dialog.remove()));
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

const cancelButton = (click) =>
  h("button", { type: "button", class: "pictures-button", words: "dialog.cancel", on: { click } });

/** Returns the button that does what the dialog is for. */
export const mainButton = (words, click) =>
  h("button", { type: "button", class: "pictures-button pictures-main", words, on: { click } });
