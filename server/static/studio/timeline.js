// The timeline: one card per clip, which is a slice of the speech, a scene, and a piece of progress.

import { html, useEffect, useRef } from "../vendor/htm-preact.js";
import { checkSoon } from "./checks.js";
import { clipsOf, clipSeconds, edit, spoken } from "./draft.js";
import { clipSecondsOf } from "./jobs.js";
import { useLinks } from "./links.js";
import { asField, FieldError, Icon, Ring, Waveform } from "./parts.js";
import { playSpeech, stopSpeech } from "./player.js";
import { outlineBetween } from "./sound.js";
import { change, state } from "./store.js";
import { clipsDone, isOver, lengthOf, seconds } from "./words.js";

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

// --- the draft ----------------------------------------------------------------------------------------------

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
    <textarea ref=${area} rows="3" aria-label=${`What happens in scene ${number + 1}`} placeholder=${number ? "As before" : EXAMPLE}
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

// --- a job --------------------------------------------------------------------------------------------------

function clipState(job, number) {
  if (number < clipsDone(job)) return "ready";
  if (job.status === "processing" && number === Math.max(job.clip, clipsDone(job))) return "making";
  if (job.status === "failed" && number === clipsDone(job)) return "failed";
  return isOver(job) ? "missing" : "waiting";
}

const CLIP_WORDS = { ready: "Ready", making: "Making", failed: "Failed", missing: "Not made", waiting: "Waiting" };

function Clip({ job, number, poster }) {
  const length = clipSecondsOf(job);
  const what = clipState(job, number);
  const { prompts } = job.params;
  const prompt = prompts[number];
  const playing = state.playing?.job === job.id && state.playing.clip === number;
  const play = () => change((now) => { now.playing = { job: job.id, clip: number }; now.tab = "watch"; });
  return html`<li class=${`slice clip ${what} ${playing ? "playing" : ""}`}>
    <div class="slice-head"><b>Clip ${number + 1}</b><span>${times(number * length, Math.min(lengthOf(job), (number + 1) * length))}</span>
      ${what === "ready" && html`<button type="button" class="slice-play" aria-label=${`Play clip ${number + 1}`} onClick=${play}><${Icon} name="play" /></button>`}
      ${what === "making" && html`<${Ring} part=${job.num_steps ? job.step / job.num_steps : 0} />`}</div>
    <div class="clip-body">${poster && html`<img src=${poster} alt="" onError=${(event) => { event.target.hidden = true; }} />`}<div>
    <p class=${`clip-state ${what}`}>${CLIP_WORDS[what]}${what === "making" && job.step ? ` · ${Math.round((job.step / job.num_steps) * 100)} %` : ""}</p>
    <p class="clip-prompt">${prompt === undefined || prompt === prompts[number - 1] ? html`<span class="soft">As before</span>` : prompt}</p></div></div>
  </li>`;
}

export function JobTimeline({ job }) {
  const links = useLinks(job);
  return html`<${Strip} label="Clips">
    ${Array.from({ length: job.num_clips }, (_, i) => html`<${Clip} key=${`${job.id} ${i}`} job=${job} number=${i} poster=${links?.posters[i]} />`)}<//>`;
}
