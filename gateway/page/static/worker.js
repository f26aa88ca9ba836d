// A worker: what takes long with a picture's file and would hold up the page.

const JOBS = {
  async bitmap({ blob, area, width, height }) {
    const size = { resizeWidth: width, resizeHeight: height, resizeQuality: "high" };
    return createImageBitmap(blob, ...area, size);
  },

  dataURL: ({ blob }) => new FileReaderSync().readAsDataURL(blob),
};

addEventListener("message", async ({ data: { job, ...values } }) => {
  try {
    const result = await JOBS[job](values);
    postMessage(result, result instanceof ImageBitmap ? [result] : []);
  } catch {
    postMessage(null);
  }
});
