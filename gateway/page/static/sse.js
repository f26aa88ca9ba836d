// Server-sent events of a byte stream, comments included: the timing of an answer is one.

/** Makes events of text that comes in pieces, wherever these were cut. */
class EventParser {
  #line = "";
  #data = [];
  #afterCR = false;

  /** Returns the events that this piece completes: {data: "..."} or {comment: "..."}. */
  push(text) {
    if (this.#afterCR && text.startsWith("\n")) text = text.slice(1);
    if (text) this.#afterCR = text.endsWith("\r");
    const lines = (this.#line + text).split(/\r\n|\r|\n/);
    this.#line = lines.pop();
    return lines.flatMap((line) => this.#read(line));
  }

  #read(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return [{ comment: line.slice(1).trim() }];
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "data") this.#data.push(value);
    return [];
  }

  #dispatch() {
    const data = this.#data;
    this.#data = [];
    return data.length ? [{ data: data.join("\n") }] : [];
  }
}

/** Yields the events of a ReadableStream of bytes. An event that never ends is not one. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening also ends the request
  }
}
