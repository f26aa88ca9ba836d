// What programs for Node.js are told: the servers, the model's name, a picture, and their packages.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

// Packages are in the client's environment, which is not beside these files.
const installed = createRequire(join(process.env.INTERNVL_ENVIRONMENT, "package.json"));

export const load = (name) => import(pathToFileURL(installed.resolve(name)).href);

// Stands in for a model that answers well and uses tools.
export const perfect = process.env.INTERNVL_PERFECT_URL;
export const servers = { toy: process.env.INTERNVL_URL, perfect };
export const model = process.env.INTERNVL_MODEL;
// A panda, a tree and a red square.
export const picture = readFileSync(join(process.env.INTERNVL_PICTURES, "scene.png"));
export const question = "What do you see in the picture?";
