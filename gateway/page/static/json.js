// JSON with large texts in it.

/**
 * Returns a value's JSON as a Blob.
 *
 * What `isLarge` picks becomes a string by `textOf`, one at a time, and goes in as it is: it must
 * need no escapes. To escape 100 MB of base64 in one string would hold up the page.
 */
export async function jsonBlob(value, isLarge, textOf = (text) => text) {
  const large = [];
  const mark = `large ${Math.random()} `;
  const json = JSON.stringify(value, (_, one) => (isLarge(one) ? mark + (large.push(one) - 1) : one));
  const pieces = json.split(new RegExp(`"${mark.replace(".", "\\.")}(\\d+)"`));
  for (let i = 1; i < pieces.length; i += 2) {
    pieces[i] = new Blob(['"', await textOf(large[pieces[i]]), '"']);
    await new Promise((resolve) => setTimeout(resolve));
  }
  return new Blob(pieces, { type: "application/json" });
}
