// The way of one question: its pictures' tiles, the request, the answer into its view and its turn.

import * as api from "./api.js";
import { asksForJSON, chatRequest } from "./request.js";
import { plan } from "./tiles.js";

/** The turns that a request has: all but answers of which nothing came, or that failed. */
export const said = (turns) =>
  turns.filter(({ role, text, error }) => role === "user" || (text && !error));

/** The pictures of these turns, in the order of their request. */
export const picturesOf = (turns) => turns.flatMap((turn) => turn.pictures ?? []);

/**
 * Asks for an answer, and shows it as it comes. The turn has all that is to be kept of it.
 *
 * `question` is {turns, options, model, key}; `signal` stops it, and `stopped()` then gives the
 * sentence that tells what became of it.
 */
export async function ask(question, turn, view, { signal, stopped }) {
  view.begin({ json: asksForJSON(question.options) });
  const isFocusLost = document.activeElement === document.body; // with the answer before this one
  if (isFocusLost) view.element.querySelector("button")?.focus({ preventScroll: true });
  const facts = {};
  try {
    await stream(question, turn, view, facts, signal);
    if (signal.aborted) await stop(turn, view, facts, stopped);
    else finish(turn, view, { ...facts, pictures: picturesOf(question.turns) });
  } catch (error) {
    fail(turn, view, facts, error);
  } finally {
    turn.facts = view.facts;
  }
}

async function stream({ turns, options, model, key }, turn, view, facts, signal) {
  await planTiles(picturesOf(turns), model, key);
  const request = await chatRequest(turns, options, model);
  const started = performance.now();
  for await (const event of api.chat(request, { signal, key })) {
    if (event.type === "delta") {
      facts.ttftMs ??= performance.now() - started;
      turn.text += event.text;
      view.append(event.text);
    } else if (event.type === "tool_calls") view.callTools(event.calls);
    else if (event.type === "finish") facts.finishReason = event.reason;
    else if (event.type === "usage") facts.usage = event.usage;
    else if (event.type === "timing") facts.timing = event;
    facts.totalMs = performance.now() - started;
  }
}

async function planTiles(pictures, model, key) {
  for (const picture of pictures) {
    if (picture.width) picture.plan = await plan(picture, model, key).catch(() => null);
  }
}

/** What the timing tells of each picture stays with it: the tile view shows it. */
function finish(turn, view, facts) {
  turn.state = "done";
  facts.timing?.images?.forEach((image, index) => {
    const picture = facts.pictures[index];
    if (picture) picture.used = { ...picture.used, ...image };
  });
  view.finish(facts);
}

async function stop(turn, view, facts, stopped) {
  turn.state = "stopped";
  view.stopped(await stopped(), facts);
}

function fail(turn, view, facts, error) {
  turn.state = "failed";
  const own = { message: String(error.message), code: "page" };
  turn.error = error instanceof api.APIError ? error.toJSON() : own;
  view.fail(turn.error, facts);
}
