// Jobs made from jobs: try again, redo from a clip on, extend. What they share is neither sent nor rendered again.

import { NoAnswer, Refused, upload } from "./api.js";
import { idempotencyKey } from "./draft.js";
import { focusField } from "./focus.js";
import { open, take } from "./jobs.js";
import { change, state } from "./store.js";
import { sentenceOf } from "./words.js";

/** Put aside what was begun for another job. */
export const begin = (what, job, rest) => change((now) => {
  now.deriving = { what, job: job.id, key: idempotencyKey(), busy: false, error: null, ...rest };
});
export const giveUp = () => change((now) => { now.deriving = null; });
export const derivingFrom = (job, what) => (state.deriving?.job === job.id && state.deriving.what === what ? state.deriving : null);

/** Change what is about to be sent: another request, so another key. */
export const revise = (changes) => change((now) => { Object.assign(now.deriving, { error: null, key: idempotencyKey() }, changes); });

/** Ask for the new job, and open it. A lost answer is found again by pressing once more. */
async function send(path, form, field) {
  const { deriving } = state;
  if (deriving.busy) return;
  change((now) => { now.deriving.busy = true; now.deriving.error = null; });
  try {
    const job = await upload(path, form, { headers: { "Idempotency-Key": deriving.key } });
    take(job);
    giveUp();
    open(job.id);
  } catch (error) {
    if (!(error instanceof Refused || error instanceof NoAnswer)) throw error;
    const gone = error.code === "idempotent_job_gone";
    change((now) => {
      if (now.deriving === deriving) Object.assign(deriving, { busy: false, error: sentenceOf(error) }, gone ? { key: idempotencyKey() } : {});
    });
    focusField(field);
  }
}

function formWith(fields) {
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  return form;
}

export function tryAgain(job) {
  if (!derivingFrom(job, "retry")) begin("retry", job, {});
  return send(`/v1/jobs/${job.id}/retry`, formWith([]), "retry");
}

/** The prompt as it stands in the card; unchanged, the clip is drawn with another seed. */
export function redo(job) {
  const { clip, prompt, before } = state.deriving;
  const changed = prompt.trim() && prompt.trim() !== before;
  return send(`/v1/jobs/${job.id}/clips/${clip}/redo`, formWith(changed ? [["prompt", prompt.trim()]] : [["seed", "-1"]]), "redo");
}

export function extend(job) {
  const { speech, prompt } = state.deriving;
  const said = prompt.trim() ? [["prompt", prompt.trim()]] : [];
  return send(`/v1/jobs/${job.id}/extend`, formWith([["audio", speech.file], ...said]), "extend");
}
