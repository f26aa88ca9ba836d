// The settings: system text, the answer's form, sampling; each with the server's default named.

import { h, icon } from "./dom.js";
import { addWords, say, t } from "./language.js";
import { newOptions, SAMPLING } from "./request.js";

addWords({
  en: {
    "drawer.title": "Settings",
    "drawer.close": "Close",
    "drawer.system": "System text",
    "drawer.systemHint": "Empty: the checkpoint's own.",
    "drawer.format": "Answer as",
    "drawer.text": "Text",
    "drawer.json_object": "Any JSON object",
    "drawer.json_schema": "JSON of a schema",
    "drawer.schema": "JSON Schema",
    "drawer.schemaBad": "This is not JSON: {reason}",
    "drawer.schemaObject": "A JSON Schema is an object.",
    "drawer.sampling": "Sampling",
    "drawer.default": "default {value}",
    "drawer.temperature": "Temperature",
    "drawer.temperature.none": "0: the most probable token",
    "drawer.top_p": "Top p",
    "drawer.top_k": "Top k",
    "drawer.top_k.none": "all tokens",
    "drawer.min_p": "Min p",
    "drawer.seed": "Seed",
    "drawer.seed.none": "random",
    "drawer.max_completion_tokens": "Most output tokens",
    "drawer.max_completion_tokens.none": "what the context leaves",
    "drawer.repetition_penalty": "Repetition penalty",
    "drawer.presence_penalty": "Presence penalty",
    "drawer.frequency_penalty": "Frequency penalty",
    "drawer.stop": "Stop strings",
    "drawer.stopHint": "One a line.",
    "drawer.reset": "All defaults",
    "drawer.range": "{name} is {value}; it must be {range}.",
    "drawer.between": "{min} to {max}",
    "drawer.least": "{min} or more",
    "drawer.whole": "a whole number",
  },
  zh: {
    "drawer.title": "设置",
    "drawer.close": "关闭",
    "drawer.system": "系统提示",
    "drawer.systemHint": "留空则使用模型自带的系统提示。",
    "drawer.format": "回答格式",
    "drawer.text": "文本",
    "drawer.json_object": "任意 JSON 对象",
    "drawer.json_schema": "符合 Schema 的 JSON",
    "drawer.schema": "JSON Schema",
    "drawer.schemaBad": "这不是有效的 JSON：{reason}",
    "drawer.schemaObject": "JSON Schema 应为一个对象。",
    "drawer.sampling": "采样",
    "drawer.default": "默认 {value}",
    "drawer.temperature": "温度",
    "drawer.temperature.none": "0：取概率最高的 token",
    "drawer.top_p": "Top p",
    "drawer.top_k": "Top k",
    "drawer.top_k.none": "全部 token",
    "drawer.min_p": "Min p",
    "drawer.seed": "随机种子",
    "drawer.seed.none": "随机",
    "drawer.max_completion_tokens": "最多输出 token 数",
    "drawer.max_completion_tokens.none": "上下文的剩余空间",
    "drawer.repetition_penalty": "重复惩罚",
    "drawer.presence_penalty": "存在惩罚",
    "drawer.frequency_penalty": "频率惩罚",
    "drawer.stop": "停止字符串",
    "drawer.stopHint": "每行一个。",
    "drawer.reset": "恢复默认",
    "drawer.range": "{name}为 {value}，应为 {range}。",
    "drawer.between": "{min} 到 {max}",
    "drawer.least": "不小于 {min}",
    "drawer.whole": "整数",
  },
});

const FORMATS = ["text", "json_object", "json_schema"];
const SAMPLE_SCHEMA = `{
  "type": "object",
  "properties": {
    "things": {"type": "array", "items": {"type": "string"}}
  },
  "required": ["things"]
}`;

/** Shows and changes a conversation's options; calls `onChange(options)` after each change. */
export class Drawer {
  #options = newOptions();
  #inputs = new Map();

  constructor(dialog, { onChange }) {
    this.dialog = dialog;
    this.onChange = onChange;
    say(dialog, "drawer.title", {}, "aria-label");
    this.system = h("textarea", { id: "drawer-system", rows: 4 });
    this.format = h("select", { id: "drawer-format" },
      FORMATS.map((value) => h("option", { value, words: `drawer.${value}` })));
    this.schema = h("textarea", { id: "drawer-schema", class: "code", rows: 9, spellcheck: "false", "aria-describedby": "drawer-schema-problem" });
    this.schemaProblem = h("p", { id: "drawer-schema-problem", class: "field-problem", role: "alert" });
    this.schemaField = field("drawer.schema", this.schema, null, this.schemaProblem);
    this.stop = h("textarea", { id: "drawer-stop", rows: 2 });
    dialog.append(drawerHead("drawer.title", dialog), h("div", { class: "drawer-body" }, this.#form()));
    closeOutside(dialog);
    dialog.addEventListener("input", () => this.#read());
    document.addEventListener("languagechange", () => this.#write());
  }

  #form() {
    const reset = h("button", { class: "button-quiet", type: "button", words: "drawer.reset",
      on: { click: () => { this.options = newOptions(); this.#read(); } } });
    return [
      field("drawer.system", this.system, "drawer.systemHint"),
      field("drawer.format", this.format), this.schemaField,
      h("fieldset", {}, h("legend", { words: "drawer.sampling" }),
        h("div", { class: "drawer-grid" }, SAMPLING.map((option) => this.#numberField(option)))),
      field("drawer.stop", this.stop, "drawer.stopHint"), reset,
    ];
  }

  #numberField({ name, standard, ...limits }) {
    const input = h("input", { id: `drawer-${name}`, type: "number", inputmode: "decimal", ...limits,
      "aria-describedby": `drawer-${name}-hint drawer-${name}-problem` });
    this.#inputs.set(name, input);
    const element = field(`drawer.${name}`, input, null, h("p", { id: `drawer-${name}-problem`, class: "field-problem" }));
    const shown = t(`drawer.${name}.none`) === `drawer.${name}.none`
      ? { words: ["drawer.default", { value: standard }] } : { words: `drawer.${name}.none` };
    element.append(h("p", { id: `drawer-${name}-hint`, class: "field-hint", ...shown }));
    return element;
  }

  get options() {
    return this.#options;
  }

  set options(options) {
    this.#options = options;
    this.#write();
  }

  /** Returns what keeps a question from being sent, as a sentence; empty if nothing does. */
  problem() {
    for (const input of this.#inputs.values()) {
      const sentence = numberProblem(input);
      if (sentence) return sentence;
    }
    return this.#options.format === "json_schema" ? schemaProblem(this.schema.value) : "";
  }

  open() {
    this.dialog.showModal();
  }

  #read() {
    const sampling = {};
    for (const [name, input] of this.#inputs) {
      if (input.value !== "" && !numberProblem(input)) sampling[name] = Number(input.value);
    }
    if (this.format.value === "json_schema" && !this.schema.value) this.schema.value = SAMPLE_SCHEMA;
    this.#options = { system: this.system.value, format: this.format.value, schema: this.schema.value,
      stop: this.stop.value, sampling };
    this.#showProblems();
    this.onChange(this.#options);
  }

  #write() {
    const { system, format, schema, stop, sampling } = this.#options;
    Object.assign(this.system, { value: system });
    Object.assign(this.format, { value: format });
    Object.assign(this.schema, { value: schema });
    Object.assign(this.stop, { value: stop });
    for (const [name, input] of this.#inputs) input.value = sampling[name] ?? "";
    this.#showProblems();
  }

  #showProblems() {
    this.schemaField.hidden = this.#options.format !== "json_schema";
    this.schemaProblem.textContent = this.schemaField.hidden ? "" : schemaProblem(this.schema.value);
    for (const [name, input] of this.#inputs) {
      const sentence = numberProblem(input);
      input.setAttribute("aria-invalid", sentence ? "true" : "false");
      this.dialog.querySelector(`#drawer-${name}-problem`).textContent = sentence;
    }
  }
}

function numberProblem(input) {
  if (input.validity.valid) return "";
  const { min, max } = input;
  const range = input.validity.stepMismatch && input.step === "1" ? t("drawer.whole")
    : max ? t("drawer.between", { min, max }) : t("drawer.least", { min });
  if (input.validity.stepMismatch && input.step !== "1") return "";
  return t("drawer.range", { name: t(input.id.replace("-", ".")), value: input.value, range });
}

function schemaProblem(text) {
  try {
    const schema = JSON.parse(text);
    const isObject = typeof schema === "object" && schema !== null && !Array.isArray(schema);
    return isObject ? "" : t("drawer.schemaObject");
  } catch (error) {
    return t("drawer.schemaBad", { reason: error.message });
  }
}

/** Returns the head of a drawer: its title, and the button that closes it. */
export function drawerHead(words, dialog) {
  const close = h("button", { class: "button-icon", type: "button", label: "drawer.close", tip: "drawer.close",
    on: { click: () => dialog.close() } }, icon("close"));
  return h("div", { class: "drawer-head" }, h("h2", { words }), close);
}

/** A click beside an open dialog closes it. */
export function closeOutside(dialog) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

function field(words, input, hint, ...rest) {
  const hintId = `${input.id}-hint`;
  if (hint) input.setAttribute("aria-describedby", hintId);
  return h("div", { class: "field" }, h("label", { for: input.id, words }), input,
    hint ? h("p", { id: hintId, class: "field-hint", words: hint }) : null, ...rest);
}
