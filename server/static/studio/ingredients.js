// The ingredients of the draft: a photo of the person, one of the product, and speech.

import { html } from "../vendor/htm-preact.js";
import { checkSoon } from "./checks.js";
import { edit, frameOf } from "./draft.js";
import { TryExample } from "./example.js";
import { asField, FieldError, FilePick, Icon, urlOf } from "./parts.js";
import { Speech } from "./speech.js";
import { state } from "./store.js";
import { takePhoto } from "./taking.js";
import { FIT } from "./words.js";

const PRODUCT_MARGIN = 1.25; // the product fills this part of the frame less, as the model was trained
const PHOTOS = "image/*,.heic,.heif,.avif";

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

export const Ingredients = () => html`<div class="ingredients">
  <div class="new-here"><${TryExample} /></div>
  <div class="photos">
    <${PhotoCard} field="person_image" title="Person" hint="Face and hands to be seen" />
    <${PhotoCard} field="product_image" title="Product" hint="On a plain background" />
  </div>
  <${Speech} />
</div>`;
