// The timeline: one card per clip, which is a slice of the speech, a scene, and a piece of progress.

import { html, useEffect, useRef } from "../vendor/htm-preact.js";
import { checkSoon } from "./checks.js";
import { clipsOf, clipSeconds, edit, spoken } from "./draft.js";
import { begin, derivingFrom, extend, giveUp, redo, revise } from "./derive.js";
import { readSpeech } from "./files.js";
import { clipSecondsOf } from "./jobs.js";
import { useLinks } from "./links.js";
import { focusField } from "./focus.js";
import { RecordButton, SOUNDS } from "./speech.js";
import { asField, FieldError, FilePick, Icon, Ring, Waveform } from "./parts.js";
import { playSpeech, stopSpeech } from "./player.js";
import { outlineBetween } from "./sound.js";
import { change, state } from "./store.js";
import { clipsDone, isOver, lengthOf, many, seconds } from "./words.js";

const EXAMPLE = "A woman in a bright kitchen lifts the teapot and shows it to the camera.";

/** Left and right go from one card's button to the next one's. */
function walk(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.target.tagName !== "BUTTON") return;
  const buttons = [...event.currentTarget.querySelectorAll(".slice-play:not(:disabled)")];
  const next = buttons[buttons.indexOf(event.target) + step];
  if (next) { next.focus(); event.preventDefault(); }
}

const Strip = ({ label, count, children }) => html`<section class="timeline" aria-label=${label} tabindex="-1">
  <ol class="slices" onKeyDown=${walk}>${children}</ol></section>`;

const times = (from, to) => `${from.toFixed(1)}–${seconds(to)}`;

// --- the draft

function Scene({ number, from, to }) {
  const { draft } = state;
  const area = useRef(null);
  const field = number ? `prompt.${number}` : "prompt";
  const known = from !== null && draft.speech?.outline;
  const playing = state.playing?.speech === number;
  useEffect(() => { if (area.current.value !== (draft.prompts[number] ?? "")) area.current.value = draft.prompts[number] ?? ""; });
  const typed = (event) => {
    const text = event.target.value;
    edit((now) => {
      while (now.prompts.length <= number) now.prompts.push("");
      now.prompts[number] = text;
    });
    change((now) => { const { [field]: _, ...others } = now.errors; now.errors = others; });
    checkSoon();
  };
  return html`<li class="slice">
    <div class="slice-head"><b>Scene ${number + 1}</b><span>${from === null ? "" : times(from, to)}</span>
      ${known && html`<button type="button" class="slice-play" aria-label=${`${playing ? "Pause" : "Play"} scene ${number + 1}`}
        onClick=${() => (playing ? stopSpeech() : playSpeech(number, draft.speech.from + from, draft.speech.from + to))}>
        <${Icon} name=${playing ? "pause" : "play"} /></button>`}</div>
    ${known && html`<${Waveform} outline=${outlineBetween(draft.speech.outline, draft.speech.from + from, draft.speech.from + to)} />`}
    <textarea ref=${area} rows="3" dir="auto" aria-label=${`What happens in scene ${number + 1}`} placeholder=${number ? "As before" : EXAMPLE}
      ...${asField(field)} onInput=${typed}></textarea>
    <${FieldError} field=${field} />
  </li>`;
}

export function DraftTimeline() {
  const { draft } = state;
  const clips = clipsOf(draft);
  const length = clipSeconds(), end = spoken(draft);
  const shown = clips ?? Math.max(1, draft.prompts.findLastIndex((text) => text.trim()) + 1);
  const timed = clips !== null && length && end !== null;
  return html`<${Strip} label="Scenes">
    ${Array.from({ length: shown }, (_, i) => html`<${Scene} key=${i} number=${i} from=${timed ? i * length : null}
      to=${timed ? Math.min(end, (i + 1) * length) : null} />`)}
    ${clips === null && html`<li class="slice more"><p>The speech decides how many scenes there are${length ? `: one for every ${seconds(length)}` : ""}.
      ${draft.speech ? "" : " Add it to see them here."}</p></li>`}
  <//>`;
}

// --- a job

function clipState(job, number) {
  if (number < clipsDone(job)) return "ready";
  if (job.status === "processing" && number === Math.max(job.clip, clipsDone(job))) return "making";
  if (job.status === "failed" && number === clipsDone(job)) return "failed";
  return isOver(job) ? "missing" : "waiting";
}

/** Whether this clip and all behind it can be made anew: the clips before it must be there. */
const canRedo = (job, number) => "parent" in job && number <= clipsDone(job) && (isOver(job) || number < clipsDone(job));

function Redo({ job, number }) {
  const { prompt, busy, error, before } = derivingFrom(job, "redo");
  const rest = job.num_clips - number - 1;
  return html`<div class="derive">
    <textarea rows="3" dir="auto" data-field="redo" aria-label=${`What happens in clip ${number + 1} now`} value=${prompt} aria-invalid=${error ? "true" : undefined}
      aria-describedby=${error ? "error-redo" : undefined} onInput=${(event) => revise({ prompt: event.target.value })}></textarea>
    <p class="soft">${prompt.trim() === before ? "Unchanged, it comes out differently. " : ""}${rest ? `${many(rest, "clip")} after it ${rest === 1 ? "follows" : "follow"} from it and ${rest === 1 ? "is" : "are"} made anew, too.` : ""}</p>
    ${error && html`<p class="error" id="error-redo">${error}</p>`}
    <div class="row"><button type="button" class="primary" disabled=${busy} onClick=${() => redo(job)}>${busy ? "Sending…" : "Redo"}</button>
      <button type="button" onClick=${giveUp}>Leave it</button></div></div>`;
}

function More({ job }) {
  const adding = derivingFrom(job, "extend");
  const take = async (file) => {
    const { speech = null, error = null } = await readSpeech(file, state.limits?.files);
    if (derivingFrom(job, "extend")) revise({ speech, error });
  };
  if (!adding) {
    return html`<li class="slice more"><button type="button" class="extend" onClick=${() => { begin("extend", job, { speech: null, prompt: "" }); focusField("extend"); }}>
      <${Icon} name="add" />Extend</button><p>Say more: the video goes on where it ends.</p></li>`;
  }
  const { speech, prompt, busy, error } = adding;
  return html`<li class="slice more adding"><div class="slice-head"><b>What is said next</b></div>
    ${speech?.outline && html`<${Waveform} outline=${speech.outline} />`}
    ${speech && html`<p class="file-name">${speech.name}${speech.seconds !== null && html` <span>${seconds(speech.seconds)}</span>`}</p>`}
    <div class="row"><${FilePick} label=${speech ? "Replace" : "Choose a recording"} accept=${SOUNDS} field="extend" onFile=${take} /><${RecordButton} take=${take} fail=${(text) => { if (derivingFrom(job, "extend")) revise({ error: text }); }} /></div>
    <textarea rows="2" dir="auto" aria-label="What happens next" placeholder="As before" value=${prompt} onInput=${(event) => revise({ prompt: event.target.value })}></textarea>
    ${error && html`<p class="error" id="error-extend">${error}</p>`}
    <div class="row"><button type="button" class="primary" disabled=${busy || !speech} onClick=${() => extend(job)}>${busy ? "Sending…" : "Extend"}</button>
      <button type="button" onClick=${giveUp}>Leave it</button></div></li>`;
}

const CLIP_WORDS = { ready: "Ready", making: "Making", failed: "Failed", missing: "Not made", waiting: "Waiting" };

function Clip({ job, number, poster }) {
  const length = clipSecondsOf(job);
  const what = clipState(job, number);
  const { prompts } = job.params;
  const prompt = prompts[number];
  const playing = state.playing?.job === job.id && state.playing.clip === number;
  const play = () => change((now) => { now.playing = { job: job.id, clip: number }; now.tab = "watch"; });
  const redoing = derivingFrom(job, "redo")?.clip === number;
  const text = job.params.prompts[Math.min(number, prompts.length - 1)];
  return html`<li class=${`slice clip ${what} ${playing ? "playing" : ""}`}>
    <div class="slice-head"><b>Clip ${number + 1}</b><span>${times(number * length, Math.min(lengthOf(job), (number + 1) * length))}</span>
      ${what === "ready" && html`<button type="button" class="slice-play" aria-label=${`Play clip ${number + 1}`} onClick=${play}><${Icon} name="play" /></button>`}
      ${what === "making" && html`<${Ring} part=${job.num_steps ? job.step / job.num_steps : 0} />`}</div>
    <div class="clip-body">${poster && html`<img key=${poster} src=${poster} alt="" loading="lazy" onError=${(event) => { event.target.hidden = true; }} />`}<div>
    <p class=${`clip-state ${what}`}>${CLIP_WORDS[what]}${what === "making" && job.step ? ` · ${Math.round((job.step / job.num_steps) * 100)} %` : ""}</p>
    ${redoing ? html`<${Redo} job=${job} number=${number} />` : html`<p class="clip-prompt" dir="auto">${prompt === undefined || prompt === prompts[number - 1] ? html`<span class="soft">As before</span>` : prompt}</p>
      ${canRedo(job, number) && html`<button type="button" class="link" aria-label=${`Redo from clip ${number + 1}`}
        onClick=${() => { begin("redo", job, { clip: number, prompt: text, before: text }); focusField("redo"); }}>Redo from here</button>`}`}</div></div>
  </li>`;
}

export function JobTimeline({ job }) {
  const links = useLinks(job);
  return html`<${Strip} label="Clips">
    ${Array.from({ length: job.num_clips }, (_, i) => html`<${Clip} key=${`${job.id} ${i}`} job=${job} number=${i} poster=${links?.posters[i]} />`)}
    ${"parent" in job && job.status === "succeeded" && html`<${More} job=${job} />`}<//>`;
}
