// The page about the API: /openapi.json for people. All of it is text; nothing is read as HTML.

import { h } from "./dom.js";

const SOURCE = "/openapi.json";
const METHODS = ["get", "post", "put", "delete"];
// Schemas may hold themselves; what lies deeper is opened by the reader.
const OPEN_DEPTH = 1;
const COPIED_MS = 1500;

class Reference {
  #definitions;

  constructor(definitions) {
    this.#definitions = definitions;
  }

  /** Returns a schema with what its $ref leads to. */
  resolved(schema) {
    const name = schema.$ref?.split("/").pop();
    return name ? { ...this.#definitions[name], ...schema, $ref: undefined, name } : schema;
  }

  /** Returns a schema's type in words, e.g. "string or list of Message". */
  type(schema) {
    const { name, type, anyOf, oneOf, items, enum: values, const: value } = this.resolved(schema);
    if (name) return name.replace(/-(Input|Output)$/, "");
    if (anyOf ?? oneOf) return [...new Set((anyOf ?? oneOf).map((one) => this.type(one)))].join(" or ");
    if (values) return values.map((one) => JSON.stringify(one)).join(" | ");
    if (value !== undefined) return JSON.stringify(value);
    if (type === "array") return `list of ${items ? this.type(items) : "anything"}`;
    return [type ?? "anything"].flat().join(" or ");
  }

  /** Returns the objects with named fields that a schema may be. */
  objects(schema) {
    const { properties, anyOf, oneOf, allOf, items, additionalProperties, ...rest } = this.resolved(schema);
    if (properties) return [{ properties, ...rest }];
    const inner = [anyOf, oneOf, allOf, items, additionalProperties].flat();
    return inner.filter((one) => one && typeof one === "object").flatMap((one) => this.objects(one));
  }
}

const LINK = /\[([^\]]*)\]\([^)]*\)/g;

/** Returns a text's pieces; of Markdown it knows code, and passes over weight and links. */
function prose(text) {
  const plain = text.replaceAll("**", "").replace(LINK, "$1");
  return plain.split("`").map((piece, index) => (index % 2 ? h("code", {}, piece) : piece));
}

function fields(reference, object, depth) {
  const required = new Set(object.required);
  const entries = Object.entries(object.properties).map(([name, schema]) =>
    field(reference, name, schema, required.has(name), depth),
  );
  return h("ul", {}, entries);
}

/** Returns an entry of a list: a name, what is to say of it, and what is in it. */
function entry(name, text, inner = null) {
  return h("li", {}, h("span", { class: "docs-name" }, name), h("p", {}, ...prose(text)), inner);
}

function field(reference, name, schema, isRequired, depth) {
  const { description } = reference.resolved(schema);
  const objects = reference.objects(schema);
  return entry(
    [name, " ", h("small", {}, reference.type(schema), isRequired ? ", required" : "")],
    description ?? "",
    objects.length ? nested(reference, objects, depth) : null,
  );
}

/** Returns what is built when the reader opens it: schemas may have no end. */
function nested(reference, objects, depth) {
  const details = h("details", {}, h("summary", {}, "fields"));
  const fill = () => {
    if (details.children.length > 1) return;
    details.append(...objects.map((object) => fields(reference, object, depth + 1)));
  };
  details.addEventListener("toggle", fill, { once: true });
  details.open = depth < OPEN_DEPTH && objects.length === 1;
  return details;
}

function schemaOf(reference, title, schema) {
  const objects = reference.objects(schema);
  const type = reference.type(schema);
  return [
    h("h3", {}, `${title}: ${type}`),
    ...objects.map((object) => fields(reference, object, OPEN_DEPTH)),
  ];
}

/** Returns a command for a shell; a quotation mark in the body ends no string of it. */
function curl(path, body) {
  const data = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${location.origin}${path} \\\n  -H 'Content-Type: application/json' -d '${data}'`;
}

function examples(path, given) {
  const output = h("pre", { tabindex: 0, "aria-label": "Command" });
  const choices = Object.entries(given).map(([name, { value }], index) => {
    const show = (event) => {
      for (const one of choices) one.setAttribute("aria-pressed", one === event.currentTarget);
      output.textContent = curl(path, value);
    };
    return h("button", { type: "button", "aria-pressed": String(index === 0), on: { click: show } }, name);
  });
  output.textContent = curl(path, Object.values(given)[0].value);
  return h("figure", {}, h("figcaption", {}, choices, copying(output)), output);
}

function copying(output) {
  const button = h("button", { type: "button" }, "copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(output.textContent);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), COPIED_MS);
  });
  return button;
}

function parameters(reference, given) {
  const entries = given.map(({ name, in: place, description, required, schema }) => {
    const words = `${reference.type(schema)}, in the ${place}${required ? ", required" : ""}`;
    return entry([name, " ", h("small", {}, words)], description);
  });
  return [h("h3", {}, "Parameters"), h("ul", {}, entries)];
}

function responses(given) {
  const entries = Object.entries(given).map(([status, { description }]) => entry(status, description));
  return [h("h3", {}, "Statuses"), h("ul", {}, entries)];
}

function section(reference, method, path, operation) {
  const body = operation.requestBody?.content["application/json"];
  const answer = operation.responses[200].content;
  const events = answer["text/event-stream"]?.schema.properties.data.anyOf[0].contentSchema.anyOf[0];
  const shown = body && Object.keys(body.examples).length > 0;
  return h(
    "section",
    { id: operation.operationId },
    h("h2", {}, `${method.toUpperCase()} ${path}`),
    h("p", { class: "docs-about" }, operation.summary, operation.description ? `\n${operation.description}` : ""),
    operation.parameters ? parameters(reference, operation.parameters) : null,
    shown ? [h("h3", {}, "Try it"), examples(path, body.examples)] : null,
    body ? schemaOf(reference, "Request", body.schema) : null,
    answer["application/json"] ? schemaOf(reference, "Answer", answer["application/json"].schema) : null,
    events ? schemaOf(reference, "Event of a stream", events) : null,
    responses(operation.responses),
  );
}

function link(method, path, { operationId }) {
  return h("a", { href: `#${operationId}` }, h("span", { class: "docs-method" }, method.toUpperCase()), path);
}

async function show() {
  const found = await fetch(SOURCE);
  const { info, paths, components } = await found.json();
  const reference = new Reference(components.schemas);
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    METHODS.filter((method) => methods[method]).map((method) => [method, path, methods[method]]),
  );
  document.querySelector("#paths").append(...operations.map((each) => link(...each)));
  document.querySelector("#operations").append(
    h("h1", {}, `${info.title} ${info.version}`),
    h("p", { class: "docs-about" }, info.description),
    h("p", {}, h("a", { href: SOURCE }, "openapi.json")),
    ...operations.map((each) => section(reference, ...each)),
  );
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

show().catch((error) => {
  document.querySelector("#operations").append(h("p", { role: "alert" }, `${SOURCE}: ${error.message}`));
});
