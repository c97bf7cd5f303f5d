// What is wrong with the draft: told by the page at once, and by the server as soon as the draft is complete.

import { NoAnswer, Refused, upload } from "./api.js";
import { clipsOf, formOf, spoken } from "./draft.js";
import { change, state } from "./store.js";
import { charsOf, FIELD, MISSING, sentenceOf, speechTooLong, textTooLong } from "./words.js";

const PAUSE_MS = 700, SPOKEN_PAUSE_MS = 2000; // a text is spoken each time it is checked
const NUMBERS = ["num_inference_steps", "guidance_scale", "flow_shift", "product_scale", "seed"];

/** Fields without which nothing can be made. */
export function missingOf(draft) {
  const missing = [];
  if (!draft.photos.person_image) missing.push("person_image");
  if (!draft.speech && !draft.typed?.text.trim()) missing.push("audio");
  if (!draft.prompts[0]?.trim()) missing.push("prompt");
  return missing;
}

/** The number field's own limits, from the schema that the server serves. */
export function boundsOf(field) {
  const schema = state.limits?.fields[field] ?? {};
  const number = schema.anyOf?.find((one) => one.type !== "null") ?? schema;
  const most = field === "num_inference_steps" ? state.limits?.max_steps : number.maximum;
  return { least: number.minimum ?? number.exclusiveMinimum, most, whole: number.type === "integer", hint: schema.description };
}

function wrongNumber(field, text) {
  const { least, most, whole } = boundsOf(field);
  const value = Number(text);
  const range = [least !== undefined && `from ${least}`, most !== undefined && `to ${most}`].filter(Boolean).join(" ");
  if (text.trim() === "" || !Number.isFinite(value) || (whole && !Number.isInteger(value))) return `${FIELD[field]} is a ${whole ? "whole " : ""}number ${range}.`;
  if (value < (least ?? value) || value > (most ?? value)) return `${FIELD[field]} goes ${range}.`;
  return null;
}

/** field → sentence, for everything that the page can tell by itself. */
export function errorsOf(draft, complete) {
  const errors = {};
  if (complete) for (const field of missingOf(draft)) errors[field] = MISSING[field];
  const { limits } = state;
  if (!limits) return errors;
  const clips = clipsOf(draft);
  if (spoken(draft) > limits.files.audio_seconds + 0.01) errors.audio = speechTooLong(limits.files.audio_seconds);
  else if (clips > limits.max_clips) errors.audio = `The speech needs ${clips} clips: at most ${limits.max_clips}. Trim it.`;
  if (draft.typed && charsOf(draft.typed.text) > limits.max_speech_chars) errors.audio = textTooLong(limits.max_speech_chars);
  draft.prompts.forEach((text, i) => {
    if (charsOf(text) > limits.max_prompt_chars) errors[i ? `prompt.${i}` : "prompt"] = textTooLong(limits.max_prompt_chars);
  });
  for (const field of NUMBERS) {
    const text = draft.settings[field];
    const wrong = text && wrongNumber(field, text);
    if (wrong) errors[field] = wrong;
  }
  return errors;
}

/** Put a refusal beside what it is about; "all" stands at the button. */
export function showRefusal(error) {
  const known = error.field in FIELD || /^prompt/.test(error.field ?? "");
  const spoken = ["speech_text", "voice"].includes(error.field);
  const field = spoken ? "audio" : !known ? "all" : error.field.replace(/^prompt\.0$|^prompt$/, "prompt");
  change((now) => { now.errors = { ...now.errors, [field]: sentenceOf(error) }; });
  return field;
}

let waiting = null, asking = null, asked = 0;

/** Ask the server about the draft, once nothing has changed for a moment. */
export function checkSoon() {
  clearTimeout(waiting);
  asking?.abort();
  const { draft, models } = state;
  if (!models.length || missingOf(draft).length || Object.keys(errorsOf(draft)).length) return;
  waiting = setTimeout(check, draft.typed ? SPOKEN_PAUSE_MS : PAUSE_MS);
}

async function check() {
  const turn = ++asked;
  asking = new AbortController();
  change((now) => { now.checking = true; });
  try {
    const estimate = await upload("/v1/validate", await formOf(state.draft), { signal: asking.signal });
    if (turn === asked) change((now) => {
      Object.assign(now, { estimate, errors: {} });
      now.draft.clipsTold = estimate.params.num_clips;
    });
  } catch (error) {
    if (turn === asked && error instanceof Refused && error.status < 500 && error.status !== 401 && error.status !== 429) showRefusal(error);
    else if (!(error instanceof NoAnswer || error instanceof Refused || error.name === "AbortError")) throw error;
  } finally {
    if (turn === asked) change((now) => { now.checking = false; });
  }
}
