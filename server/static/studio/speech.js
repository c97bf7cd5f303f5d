// The speech of the draft: a recording that can be trimmed, or a text where the server can speak.

import { html, useEffect } from "../vendor/htm-preact.js";
import { checkSoon } from "./checks.js";
import { edit } from "./draft.js";
import { asField, FieldError, FilePick, Icon, Waveform } from "./parts.js";
import { playSpeech, stopSpeech } from "./player.js";
import { decoded, wavOf } from "./sound.js";
import { change, state } from "./store.js";
import { takeSpeech } from "./taking.js";
import { seconds } from "./words.js";

export const SOUNDS = "audio/*,video/mp4,video/quicktime,video/webm,.m4a,.mka,.mov,.aiff";

const microphone = () => import("./recorder.js"); // few visits need it

/** A press starts recording, the next one stops it: then `take(file)`. */
async function record(take, fail) {
  const { pressRecord } = await microphone().catch(() => ({}));
  if (!pressRecord) return fail("The server cannot be reached. Choose a file, or try again.");
  await pressRecord(async (blob) => {
    change((now) => { now.recorder = "reading"; });
    const sound = await decoded(blob);
    change((now) => { now.recorder = "idle"; });
    if (sound) await take(wavOf(sound.buffer, "recording.wav"));
  }, fail);
}

const abandon = () => { microphone().then(({ abandonRecording }) => abandonRecording(), () => {}); };

const failHere = (text) => change((now) => { now.errors = { ...now.errors, audio: text }; });

/** When it goes away, so does the recording: the microphone would stay on with nothing to switch it off. */
export function RecordButton({ take, fail = failHere }) {
  useEffect(() => abandon, []);
  const { recorder, recordedFor, level } = state;
  const text = { idle: "Record", asking: "Waiting for the microphone…", recording: `Stop · ${seconds(recordedFor)}`, reading: "Reading…" }[recorder];
  return html`<button type="button" id="record" class=${`quiet ${recorder}`} onClick=${() => record(take, fail)} disabled=${recorder === "reading"}>
    <span class="record-dot" style=${recorder === "recording" ? { transform: `scale(${0.7 + level})` } : {}}></span>${text}</button>`;
}

function Trim({ speech }) {
  const set = (end) => (event) => {
    const value = Number(event.target.value);
    edit((draft) => {
      if (end === "from") draft.speech.from = Math.min(value, draft.speech.to - 0.2);
      else draft.speech.to = Math.max(value, draft.speech.from + 0.2);
    });
    checkSoon();
  };
  const range = (end, label) => html`<input type="range" class=${end} min="0" max=${speech.seconds} step="0.1" value=${speech[end]}
    aria-label=${label} aria-valuetext=${seconds(speech[end])} onInput=${set(end)} />`;
  return html`<div class="trim">
    <${Waveform} outline=${speech.outline} from=${speech.from / speech.seconds} to=${speech.to / speech.seconds} />
    ${range("from", "Speech begins at")}${range("to", "Speech ends at")}
  </div>`;
}

// --- a text instead

function Typed({ typed }) {
  const set = (name) => (event) => {
    const { value } = event.target;
    edit((draft) => { draft.typed[name] = value; draft.clipsTold = null; });
    change((now) => { const { audio: _, ...others } = now.errors; now.errors = others; });
    checkSoon();
  };
  return html`<textarea rows="4" dir="auto" aria-label="What the person says" placeholder="What the person says" value=${typed.text} ...${asField("audio")} onInput=${set("text")}></textarea>
    <label class="inline"><span class="visually-hidden">Voice</span><select onChange=${set("voice")}>
      ${state.voices.map((voice) => html`<option value=${voice} selected=${voice === typed.voice}>Voice: ${voice}</option>`)}</select></label>`;
}

function Ways({ typed }) {
  const choose = (text) => {
    stopSpeech();
    edit((draft) => { draft.typed = text ? { text: "", voice: state.voices[0] } : null; draft.speech = null; draft.clipsTold = null; });
  };
  const way = (text, label) => html`<button type="button" class="quiet" aria-pressed=${Boolean(typed) === text ? "true" : "false"} onClick=${() => choose(text)}>${label}</button>`;
  return html`<div class="row ways" role="group" aria-label="How the speech comes">${way(false, "Recording")}${way(true, "Text")}</div>`;
}

// --- a recording

function Recording({ speech }) {
  const isPlaying = state.playing?.speech === "all";
  const removed = () => {
    stopSpeech();
    edit((draft) => { draft.speech = null; draft.clipsTold = null; });
    setTimeout(() => document.querySelector("[data-field=audio]")?.focus());
  };
  return html`<p class="file-name">${speech.name}${speech.seconds !== null && html` <span>${seconds(speech.to - speech.from)}</span>`}</p>
    ${speech.outline ? html`<${Trim} speech=${speech} />` : html`<p class="soft">This browser cannot draw it. The server can read it.</p>`}
    <div class="row">
      ${speech.outline && html`<button type="button" class="quiet" onClick=${() => (isPlaying ? stopSpeech() : playSpeech("all", speech.from, speech.to))}>
        <${Icon} name=${isPlaying ? "pause" : "play"} />${isPlaying ? "Pause" : "Play"}</button>`}
      <${FilePick} label="Replace" accept=${SOUNDS} onFile=${takeSpeech} field="audio" />
      <button type="button" class="plain" onClick=${removed} aria-label="Remove the speech">Remove</button>
      <${RecordButton} take=${takeSpeech} />
    </div>`;
}

const NoRecording = () => html`<label class="drop wide">
    <input type="file" class="hidden-input" name="audio" accept=${SOUNDS} ...${asField("audio")}
      onChange=${(event) => { if (event.target.files[0]) takeSpeech(event.target.files[0]); event.target.value = ""; }} />
    <${Icon} name="speech" /><b>Add a recording</b><span>WAV, MP3, M4A and others</span>
  </label><div class="row"><${RecordButton} take=${takeSpeech} /></div>`;

export function Speech() {
  const { speech, typed } = state.draft;
  return html`<section class="card ingredient speech" data-drop="audio" tabindex="-1" aria-labelledby="speech-title">
    <h2 id="speech-title">Speech</h2>
    ${state.voices.length > 0 && html`<${Ways} typed=${typed} />`}
    ${typed ? html`<${Typed} typed=${typed} />` : speech ? html`<${Recording} speech=${speech} />` : html`<${NoRecording} />`}
    <${FieldError} field="audio" />
  </section>`;
}
