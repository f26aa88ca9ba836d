// Which way up a WebP file is. Chromium shows it as it is stored, whatever its Exif says; the vision
// service turns it, as browsers do with all other formats.

const HEAD_BYTE_COUNT = 21;
const HAS_EXIF = 0x08; // of VP8X's flags
const ORIENTATION = 0x0112; // TIFF 6.0's tag

/** Says whether the file is a WebP picture that the browser shows otherwise than the model sees it. */
export async function isTurnedWebP(blob) {
  try {
    const head = await bytes(blob, 0, HEAD_BYTE_COUNT);
    const isExtended = text(head, 0) === "RIFF" && text(head, 8) + text(head, 12) === "WEBPVP8X";
    if (!isExtended || !(head.getUint8(20) & HAS_EXIF)) return false;
    return orientation(await exif(blob)) > 1;
  } catch {
    return false; // The file ends too early.
  }
}

const bytes = async (blob, from, count) =>
  new DataView(await blob.slice(from, from + count).arrayBuffer());

const text = (view, from) =>
  String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(from + i)));

/** Returns the content of the file's Exif chunk, which most often comes last. */
async function exif(blob) {
  for (let at = 12; ;) {
    const head = await bytes(blob, at, 8);
    const size = head.getUint32(4, true);
    if (text(head, 0) === "EXIF") return bytes(blob, at + 8, size);
    at += 8 + size + (size % 2);
  }
}

function orientation(view) {
  const start = text(view, 0) === "Exif" ? 6 : 0;
  const isLittle = view.getUint8(start) === 0x49; // "II"
  const directory = start + view.getUint32(start + 4, isLittle);
  const count = view.getUint16(directory, isLittle);
  for (let entry = directory + 2; entry < directory + 2 + 12 * count; entry += 12) {
    const isIt = view.getUint16(entry, isLittle) === ORIENTATION;
    if (isIt) return view.getUint16(entry + 8, isLittle);
  }
  return 1;
}
