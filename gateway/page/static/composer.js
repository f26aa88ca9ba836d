// The composer: pictures, the question, and the button that sends them.

import { h, icon } from "./dom.js";
import { addWords, say } from "./language.js";
import { PictureTray } from "./pictures.js";

addWords({
  en: {
    "composer.label": "Ask",
    "composer.question": "Your question",
    "composer.placeholder": "Ask about a picture, or anything",
    "composer.send": "Send",
    "composer.hint": "Enter sends, Shift+Enter starts a line",
    "composer.editing": "You are changing an earlier turn; what follows it will be replaced.",
    "composer.cancel": "Keep it as it was",
  },
  zh: {
    "composer.label": "提问",
    "composer.question": "你的问题",
    "composer.placeholder": "就图片提问，或者随便聊聊",
    "composer.send": "发送",
    "composer.hint": "Enter 发送，Shift+Enter 换行",
    "composer.editing": "正在修改之前的提问，其后的内容将被替换。",
    "composer.cancel": "保持原样",
  },
});

const MAX_HEIGHT = 240;

/** Events: "send" with `detail` {text, pictures}, "cancel" (of an edit). */
export class Composer extends EventTarget {
  #draft = null; // what was in the composer before an earlier turn came into it
  #isBusy = false;

  constructor(form, { inspector, model, key }) {
    super();
    this.form = form;
    this.question = h("textarea", {
      id: "question", rows: 1, label: "composer.question",
      placeholderWords: "composer.placeholder", "aria-describedby": "composer-hint",
    });
    this.send = h("button", { class: "button-main", type: "submit", label: "composer.send", tip: "composer.send" },
      icon("send"));
    this.banner = h("p", { class: "composer-banner", hidden: true },
      h("span", { words: "composer.editing" }),
      h("button", { class: "button-quiet", type: "button", words: "composer.cancel", on: { click: () => this.cancel() } }));
    const tray = h("div", { class: "composer-tray" });
    this.problem = h("p", { class: "composer-problem", role: "alert", hidden: true });
    say(form, "composer.label", {}, "aria-label");
    form.append(this.banner,
      h("div", { class: "composer-box" }, this.question,
        h("div", { class: "composer-row" }, tray, this.send)),
      this.problem,
      h("p", { id: "composer-hint", class: "composer-hint", words: "composer.hint" }));
    this.tray = new PictureTray({ element: tray, inspector, model, key });
    this.tray.listen(window);
    this.#listen();
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.question.addEventListener("keydown", (event) => {
      // 229: Safari says so of the Enter that ends a composition, e.g. in Chinese.
      const isComposing = event.isComposing || event.keyCode === 229;
      if (event.key !== "Enter" || event.shiftKey || isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.question.addEventListener("input", () => {
      this.showProblem("");
      this.#refresh();
    });
    this.tray.addEventListener("change", () => this.#refresh());
    this.tray.addEventListener("problem", (event) => this.showProblem(event.detail));
    this.#refresh();
  }

  get isEmpty() {
    return !this.question.value.trim() && !this.tray.pictures.length;
  }

  /** While an answer comes, nothing is sent. */
  set busy(isBusy) {
    this.#isBusy = isBusy;
    this.#refresh();
  }

  /** Puts a turn in, to be changed; what was being written comes back afterwards. */
  edit(turn) {
    this.#draft ??= this.#content();
    this.fill(turn);
    this.banner.hidden = false;
  }

  cancel() {
    this.endEdit();
    this.dispatchEvent(new Event("cancel"));
  }

  /** What was being written before an earlier turn came in comes back. */
  endEdit() {
    if (this.#draft) this.#restore();
  }

  fill({ text, pictures }) {
    this.question.value = text;
    this.tray.set(pictures ?? []);
    this.#refresh();
    this.question.focus();
  }

  /** Shows a sentence below the question until something changes; empty: none. */
  showProblem(sentence) {
    this.problem.textContent = sentence;
    this.problem.hidden = !sentence;
  }

  #content() {
    return { text: this.question.value, pictures: [...this.tray.pictures] };
  }

  #restore() {
    this.banner.hidden = true;
    this.fill(this.#draft ?? { text: "", pictures: [] });
    this.#draft = null;
  }

  #submit() {
    if (this.#isBusy || this.isEmpty) return;
    const detail = this.#content();
    if (!this.dispatchEvent(new CustomEvent("send", { detail, cancelable: true }))) return;
    this.showProblem("");
    this.#restore();
  }

  #refresh() {
    this.send.disabled = this.#isBusy || this.isEmpty;
    this.question.style.height = "auto";
    this.question.style.height = `${Math.min(this.question.scrollHeight, MAX_HEIGHT)}px`;
  }
}
