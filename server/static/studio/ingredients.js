// The ingredients of the draft: a photo of the person, one of the product, and speech.

import { html } from "../vendor/htm-preact.js";
import { checkSoon } from "./checks.js";
import { edit, frameOf } from "./draft.js";
import { kindOfFile, readPhoto, readSpeech } from "./files.js";
import { asField, FieldError, FilePick, Icon, urlOf, Waveform } from "./parts.js";
import { playSpeech, stopSpeech } from "./player.js";
import { pressRecord } from "./recorder.js";
import { decoded, wavOf } from "./sound.js";
import { change, say, state } from "./store.js";
import { FIT, kindRefused, seconds } from "./words.js";

const PRODUCT_MARGIN = 1.25; // the product fills this part of the frame less, as the model was trained
export const PHOTOS = "image/*,.heic,.heif,.avif";
export const SOUNDS = "audio/*,video/mp4,video/quicktime,video/webm,.m4a,.mka,.mov,.aiff";

// --- taking files -------------------------------------------------------------------------------------------

const turns = {};

/** The result of reading a file, unless another one was chosen for the same place meanwhile. */
async function read(field, work) {
  const turn = turns[field] = (turns[field] ?? 0) + 1;
  const result = await work();
  if (turns[field] !== turn) return;
  if (result.error) return change((now) => { now.errors = { ...now.errors, [field]: result.error }; });
  edit((draft) => {
    if (field === "audio") draft.speech = result.speech;
    else draft.photos[field] = result.photo;
  });
  change((now) => { const { [field]: _, ...others } = now.errors; now.errors = others; });
  say(`${field === "audio" ? "Speech" : field === "product_image" ? "Product photo" : "Photo of the person"} added`);
  checkSoon();
}

export const takePhoto = (field, file) => read(field, () => readPhoto(file, field, state.limits?.files));
export const takeSpeech = (file) => { stopSpeech(); return read("audio", () => readSpeech(file, state.limits?.files)); };

/** Files that were dropped or pasted: each goes where it fits. `field` is the card that it was dropped on. */
export async function takeFiles(files, field = null) {
  for (const file of files) {
    const kind = await kindOfFile(file);
    if (field === "audio" || (kind === "audio" && !field)) await takeSpeech(file);
    else if (field) await takePhoto(field, file);
    else if (kind === "image") await takePhoto(state.draft.photos.person_image ? "product_image" : "person_image", file);
    else change((now) => { now.toast = { text: `${file.name || "This"}: ${kindRefused("person_image")}` }; });
  }
}

async function takeRecording(blob) {
  change((now) => { now.recorder = "reading"; });
  const sound = await decoded(blob);
  change((now) => { now.recorder = "idle"; });
  if (sound) await takeSpeech(wavOf(sound.buffer, "recording.wav"));
}

const record = () => pressRecord(takeRecording, (text) => change((now) => { now.errors = { ...now.errors, audio: text }; }));

// --- photos -------------------------------------------------------------------------------------------------

/** The photo as the model will see it: what is cut away is dimmed. */
export function Framed({ photo, fit, name }) {
  const [width, height] = frameOf(state.draft);
  const image = (style) => html`<img src=${urlOf(photo.file)} alt=${name} style=${style} />`;
  if (!photo.width) return html`<p class="unseen">${photo.name}<br />This browser cannot show it. The server can read it.</p>`;
  if (fit !== "cover") return image({ objectFit: fit === "stretch" ? "fill" : "contain" });
  const scale = Math.min(photo.width / width, photo.height / height);
  const [w, h] = [width * scale, height * scale];
  const [x, y] = [(photo.width - w) / 2, (photo.height - h) / 2];
  return html`${image({ objectFit: "contain" })}
    <svg class="crop" viewBox=${`0 0 ${photo.width} ${photo.height}`} aria-hidden="true">
      <path class="cut" fill-rule="evenodd" d=${`M0 0h${photo.width}v${photo.height}h${-photo.width}zM${x} ${y}h${w}v${h}h${-w}z`} />
      <rect x=${x} y=${y} width=${w} height=${h} vector-effect="non-scaling-stroke" />
    </svg>`;
}

function PhotoCard({ field, title, hint }) {
  const photo = state.draft.photos[field];
  const [width, height] = frameOf(state.draft);
  const isPerson = field === "person_image";
  const fit = isPerson ? state.draft.settings.fit ?? "cover" : "contain";
  const scale = isPerson ? 1 : Number(state.draft.settings.product_scale || 1) / PRODUCT_MARGIN;
  const take = (file) => takePhoto(field, file);
  const removed = () => {
    edit((draft) => { draft.photos[field] = null; });
    checkSoon();
    setTimeout(() => document.querySelector(`[data-field=${field}]`)?.focus());
  };
  return html`<section class="card ingredient" data-drop=${field} tabindex="-1" aria-labelledby=${`${field}-title`}>
    <h2 id=${`${field}-title`}>${title}${!isPerson && html` <small>optional</small>`}</h2>
    ${photo ? html`
      <div class="frame" style=${{ aspectRatio: `${width} / ${height}` }}>
        <div class="placed" style=${{ transform: `scale(${scale})` }}><${Framed} photo=${photo} fit=${fit} name=${`${title}: ${photo.name}`} /></div>
      </div>
      ${isPerson && html`<label class="inline"><span class="visually-hidden">How the photo fills the frame</span>
        <select value=${fit} onChange=${(event) => { edit((draft) => { draft.settings.fit = event.target.value; }); checkSoon(); }}>
          ${Object.entries(FIT).map(([value, text]) => html`<option value=${value} selected=${value === fit}>${text}</option>`)}
        </select></label>`}
      <div class="row"><${FilePick} label="Replace" accept=${PHOTOS} onFile=${take} field=${field} />
        <button type="button" class="plain" onClick=${removed} aria-label=${`Remove the photo: ${title}`}>Remove</button></div>`
    : html`<label class="drop" style=${{ aspectRatio: `${width} / ${height}` }}>
        <input type="file" class="hidden-input" name=${field} accept=${PHOTOS} ...${asField(field)}
          onChange=${(event) => { if (event.target.files[0]) take(event.target.files[0]); event.target.value = ""; }} />
        <${Icon} name=${isPerson ? "person" : "product"} /><b>Add a photo</b><span>${hint}</span>
      </label>`}
    <${FieldError} field=${field} />
  </section>`;
}

// --- speech -------------------------------------------------------------------------------------------------

function RecordButton() {
  const { recorder, recordedFor, level } = state;
  const text = { idle: "Record", asking: "Waiting for the microphone…", recording: `Stop · ${seconds(recordedFor)}`, reading: "Reading…" }[recorder];
  return html`<button type="button" id="record" class=${`quiet ${recorder}`} onClick=${record} disabled=${recorder === "reading"}>
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

function Speech() {
  const { speech } = state.draft;
  const isPlaying = state.playing?.speech === "all";
  const removed = () => {
    stopSpeech();
    edit((draft) => { draft.speech = null; });
    setTimeout(() => document.querySelector("[data-field=audio]")?.focus());
  };
  return html`<section class="card ingredient speech" data-drop="audio" tabindex="-1" aria-labelledby="speech-title">
    <h2 id="speech-title">Speech</h2>
    ${speech ? html`
      <p class="file-name">${speech.name}${speech.seconds !== null && html` <span>${seconds(speech.to - speech.from)}</span>`}</p>
      ${speech.outline ? html`<${Trim} speech=${speech} />` : html`<p class="soft">This browser cannot draw it. The server can read it.</p>`}
      <div class="row">
        ${speech.outline && html`<button type="button" class="quiet" onClick=${() => (isPlaying ? stopSpeech() : playSpeech("all", speech.from, speech.to))}>
          <${Icon} name=${isPlaying ? "pause" : "play"} />${isPlaying ? "Pause" : "Play"}</button>`}
        <${FilePick} label="Replace" accept=${SOUNDS} onFile=${takeSpeech} field="audio" />
        <button type="button" class="plain" onClick=${removed} aria-label="Remove the speech">Remove</button>
        <${RecordButton} />
      </div>`
    : html`<label class="drop wide">
        <input type="file" class="hidden-input" name="audio" accept=${SOUNDS} ...${asField("audio")}
          onChange=${(event) => { if (event.target.files[0]) takeSpeech(event.target.files[0]); event.target.value = ""; }} />
        <${Icon} name="speech" /><b>Add a recording</b><span>WAV, MP3, M4A and others</span>
      </label><div class="row"><${RecordButton} /></div>`}
    <${FieldError} field="audio" />
  </section>`;
}

export const Ingredients = () => html`<div class="ingredients">
  <div class="photos">
    <${PhotoCard} field="person_image" title="Person" hint="Face and hands to be seen" />
    <${PhotoCard} field="product_image" title="Product" hint="On a plain background" />
  </div>
  <${Speech} />
</div>`;
