// Sending the draft. A lost answer is asked for again under the same key, until there is one or the seller stops.

import { NoAnswer, Refused, upload } from "./api.js";
import { errorsOf, showRefusal } from "./checks.js";
import { formOf, idempotencyKey, note } from "./draft.js";
import { focusField } from "./focus.js";
import { open, take } from "./jobs.js";
import { change, say, state } from "./store.js";

const AGAIN_MS = 2000;
let stopping = null;

const pause = (signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, AGAIN_MS);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
});

export function stopSending() {
  stopping?.abort();
}

export async function makeVideo() {
  if (state.sending) return;
  const errors = errorsOf(state.draft, true);
  change((now) => { now.errors = errors; });
  if (Object.keys(errors).length) return focusField(Object.keys(errors)[0]);
  stopping = new AbortController();
  const { signal } = stopping;
  change((now) => { now.sending = { sent: 0, total: 0, waiting: false }; });
  say("Sending");
  try {
    const form = await formOf(state.draft);
    const key = state.draft.key ?? idempotencyKey();
    await note((draft) => { Object.assign(draft, { key, unanswered: true }); });
    const job = await sent(form, key, signal);
    await note((draft) => { if (draft.key === key) Object.assign(draft, { key: null, unanswered: false }); });
    take(job);
    open(job.id);
  } catch (error) {
    await failed(error);
  } finally {
    change((now) => { now.sending = null; });
  }
}

async function sent(form, key, signal) {
  const onProgress = (loaded, total) => change((now) => { now.sending = { sent: loaded, total, waiting: false }; });
  for (;;) {
    try {
      return await upload("/v1/generate", form, { headers: { "Idempotency-Key": key }, onProgress, signal });
    } catch (error) {
      const passing = error instanceof NoAnswer || (error instanceof Refused && error.status === 503 && error.code !== "no_checkpoint");
      if (!passing || signal.aborted) throw error;
      change((now) => { now.sending = { sent: 0, total: 0, waiting: true }; });
      await pause(signal);
      if (signal.aborted) throw error;
    }
  }
}

async function failed(error) {
  if (error instanceof Refused) {
    const gone = error.code === "idempotent_job_gone" || error.code === "idempotency_key_reused";
    await note((draft) => Object.assign(draft, { unanswered: false }, gone ? { key: null } : {}));
    const field = showRefusal(error);
    focusField(field);
  } else if (error instanceof NoAnswer || error.name === "AbortError") {
    say("Stopped");
    focusField("make");
  } else {
    throw error;
  }
}
