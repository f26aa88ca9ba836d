// A worker: decodes pictures and makes them small, which would hold up the page for long.

addEventListener("message", async ({ data: { id, blob, area, width, height } }) => {
  try {
    const size = { resizeWidth: width, resizeHeight: height, resizeQuality: "high" };
    const bitmap = await createImageBitmap(blob, ...area, size);
    postMessage({ id, bitmap }, [bitmap]);
  } catch {
    postMessage({ id, bitmap: null });
  }
});
