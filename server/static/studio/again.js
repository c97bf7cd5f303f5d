// Ingredients that the server has, as a draft: those of a job, to change something, or those of the example.

import { blobOf } from "./api.js";
import { edit, emptyDraft } from "./draft.js";
import { checkSoon } from "./checks.js";
import { readPhoto, readSpeech } from "./files.js";
import { focusField } from "./focus.js";
import { linksOf, open, own } from "./jobs.js";
import { change, state } from "./store.js";

const FIELDS = ["size", "preset", "num_inference_steps", "guidance_scale", "flow_shift", "product_scale", "fit", "router_maps", "negative_prompt"];
const NAMES = { person_image: "person.png", product_image: "product.png", audio: "speech.wav", pose_video: "pose.mp4" };

/** Only what differs from the checkpoint's own. The seed is left open: the same one would make the same video. */
function settingsOf(job) {
  const standard = state.models.find((one) => one.default);
  const used = state.models.find((one) => one.id === job.model) ?? standard;
  const own = { size: used?.sizes[0], ...used?.defaults };
  const plain = (field) => own[field] ?? state.limits?.fields[field]?.default;
  const changed = FIELDS.filter((field) => job.params[field] !== plain(field)).map((field) => [field, String(job.params[field])]);
  return { ...(job.model === standard?.id ? {} : { model: job.model }), ...Object.fromEntries(changed) };
}

/** The files that lie at `addresses`, by field, as the draft keeps them. Throws like `blobOf`. */
async function fetched(addresses) {
  const found = await Promise.all(Object.entries(NAMES).filter(([field]) => addresses[field])
    .map(async ([field, name]) => [field, new File([await blobOf(addresses[field])], name)]));
  const files = Object.fromEntries(found);
  const photo = async (field) => (files[field] ? (await readPhoto(files[field], field, null)).photo : null);
  return {
    photos: { person_image: await photo("person_image"), product_image: await photo("product_image") },
    speech: (await readSpeech(files.audio, null)).speech, pose: files.pose_video ?? null,
  };
}

function fill(ingredients) {
  edit((draft) => { Object.assign(draft, emptyDraft(), ingredients); });
  change((now) => { now.errors = {}; });
  checkSoon();
}

/** Nothing happens if another job was opened before the files were there. */
export async function useAgain(job) {
  const files = await fetched((await linksOf(job)).inputs);
  if (state.view.job !== job.id) return;
  fill({ ...files, prompts: [...job.params.prompts], settings: settingsOf(job) });
  change((now) => { now.tab = "photos"; });
  open(null);
}

export async function tryExample(example) {
  const addresses = Object.fromEntries(Object.keys(NAMES).map((field) => [field, own(example[field])]));
  fill({ ...await fetched(addresses), prompts: [...example.prompts] });
  focusField("make");
}
