// Ingredients that the server has, as a draft: those of a job, to change something, or those of the example.

import { blobOf } from "./api.js";
import { edit, emptyDraft, model } from "./draft.js";
import { checkSoon } from "./checks.js";
import { readPhoto, readSpeech } from "./files.js";
import { focusField } from "./focus.js";
import { linksOf, open, own } from "./jobs.js";
import { fieldsOf } from "./recipes.js";
import { change } from "./store.js";

/** Only what differs from the checkpoint's own. The seed is left open: the same one would make the same video. */
function settingsOf(job) {
  const { model: name, seed: _, ...fields } = fieldsOf(job);
  const own = { preset: "exact", fit: "cover", product_scale: 1, router_maps: false, size: model()?.sizes[0], ...model()?.defaults };
  const changed = Object.entries(fields).filter(([field, value]) => value !== own[field]);
  return { ...(name === model()?.id ? {} : { model: name }), ...Object.fromEntries(changed.map(([field, value]) => [field, String(value)])) };
}

/** Fill the draft with files that lie at `addresses`, by field, and show it. Throws like `blobOf`. */
async function fill(addresses, prompts, settings) {
  const file = async (field, name) => (addresses[field] ? new File([await blobOf(addresses[field])], name) : null);
  const [person, product, audio] = await Promise.all([
    file("person_image", "person.png"), file("product_image", "product.png"), file("audio", "speech.wav"),
  ]);
  const photo = async (from, field) => (from ? (await readPhoto(from, field, null)).photo : null);
  const fresh = {
    ...emptyDraft(),
    photos: { person_image: await photo(person, "person_image"), product_image: await photo(product, "product_image") },
    speech: (await readSpeech(audio, null)).speech, prompts, settings,
  };
  edit((draft) => { Object.assign(draft, fresh); });
  change((now) => { now.errors = {}; });
  checkSoon();
}

export async function useAgain(job) {
  await fill((await linksOf(job)).inputs, [...job.params.prompts], settingsOf(job));
  change((now) => { now.tab = "photos"; });
  open(null);
}

export async function tryExample(example) {
  await fill(Object.fromEntries(["person_image", "product_image", "audio"].map((field) => [field, own(example[field])])), [...example.prompts], {});
  focusField("make");
}
