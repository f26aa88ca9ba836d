// The conversation as it is read: questions with their pictures, answers, and a view that stays at
// the end while an answer comes, unless the reader has gone up.

import { AnswerView } from "./answer.js";
import { h, icon } from "./dom.js";
import { addWords, say } from "./language.js";
import { pictureStrip } from "./pictures.js";

addWords({
  en: {
    "conversation.label": "Conversation",
    "conversation.you": "You",
    "conversation.model": "Model",
    "conversation.edit": "Change this turn",
    "conversation.title": "Ask about a picture",
    "conversation.lead":
      "Drop one here, paste it, or add it below. You will see the tiles that the model gets, what " +
      "was cached, and where the time went.",
    "conversation.sample": "Try this one",
    "conversation.sampleQuestion": "What is in the bottom right?",
  },
  zh: {
    "conversation.label": "对话",
    "conversation.you": "你",
    "conversation.model": "模型",
    "conversation.edit": "修改此提问",
    "conversation.title": "就图片提问",
    "conversation.lead":
      "把图片拖到这里、粘贴进来，或在下方添加。你会看到模型实际得到的图块、哪些命中了缓存，以及时间花在了哪里。",
    "conversation.sample": "试试这张",
    "conversation.sampleQuestion": "右下角有什么东西？",
  },
});

/** Shows the turns of a conversation. */
export class ConversationView {
  #column = h("div", { class: "conversation-column" });
  #end = h("div", { class: "conversation-end" });
  #isAtEnd = true;

  /** `on` has the listeners edit(turn), again(turn), stop(), inspect(picture, pictures), sample(). */
  constructor(section, on) {
    this.section = section;
    this.on = on;
    say(section, "conversation.label", {}, "aria-label");
    section.tabIndex = 0;
    this.#column.append(this.#end);
    section.append(this.#column);
    this.#follow();
  }

  #follow() {
    const nearness = { root: this.section, rootMargin: "0px 0px 64px 0px" };
    new IntersectionObserver(([entry]) => (this.#isAtEnd = entry.isIntersecting), nearness).observe(
      this.#end,
    );
    new ResizeObserver(() => this.#isAtEnd && this.toEnd()).observe(this.#column);
  }

  /** Goes to the end, and stays there. */
  toEnd() {
    this.#isAtEnd = true;
    this.section.scrollTop = this.section.scrollHeight;
  }

  /** Shows these turns in place of all others. */
  show(turns) {
    this.#column.replaceChildren(this.#end);
    if (!turns.length) this.#add(welcome(this.on));
    for (const turn of turns) turn.role === "user" ? this.addQuestion(turn) : this.addAnswer(turn);
    this.toEnd();
  }

  addQuestion(turn) {
    this.#column.querySelector(".welcome")?.remove();
    this.#add(question(turn, this.on));
  }

  /** Shows an answer, and returns its view. */
  addAnswer(turn) {
    const listeners = { onStop: () => this.on.stop(), onAgain: () => this.on.again(turn) };
    const view =
      turn.state === "streaming" ? new AnswerView(listeners) : AnswerView.of(turn, listeners);
    const article = h("div", { class: "turn" }, speaker("conversation.model"), view.element);
    this.#add(article);
    return view;
  }

  #add(element) {
    this.#end.before(element);
  }
}

/** Who speaks: readers of a screen go from heading to heading. */
const speaker = (words) => h("h2", { class: "unseen", words });

function question(turn, on) {
  const { text, pictures = [] } = turn;
  const inspect = (picture) => on.inspect(picture, pictures);
  const edit = h("button", { class: "button-icon", type: "button", label: "conversation.edit", tip: "conversation.edit",
    on: { click: () => on.edit(turn) } }, icon("edit"));
  return h("article", { class: "turn turn-mine", label: "conversation.you" }, speaker("conversation.you"),
    pictures.length ? pictureStrip(pictures, { inspect }) : null,
    h("div", { class: "question" }, edit, text ? h("p", { class: "question-text" }, text) : null));
}

function welcome(on) {
  const sample = h("button", { class: "welcome-sample", type: "button", on: { click: () => on.sample() } },
    h("img", { src: "/page/sample.webp", alt: "", width: 112, height: 112 }),
    h("span", { words: "conversation.sample" }),
    h("q", { words: "conversation.sampleQuestion" }));
  return h("div", { class: "welcome" },
    h("h2", { words: "conversation.title" }), h("p", { words: "conversation.lead" }), sample);
}
