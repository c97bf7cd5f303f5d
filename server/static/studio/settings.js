// Advanced settings: what the checkpoint offers, its own values as placeholders, limits from the server.

import { html } from "../vendor/htm-preact.js";
import { boundsOf, checkSoon, errorsOf } from "./checks.js";
import { edit, model } from "./draft.js";
import { asField, FieldError } from "./parts.js";
import { change, state } from "./store.js";
import { FIELD } from "./words.js";

const set = (field) => (event) => {
  edit((draft) => {
    if (event.target.value) draft.settings[field] = event.target.value;
    else delete draft.settings[field];
  });
  change((now) => { now.errors = errorsOf(now.draft); });
  checkSoon();
};

function Choice({ field, options, value }) {
  return html`<label>${FIELD[field]}<select ...${asField(field)} onChange=${set(field)}>
    ${options.map(([one, text]) => html`<option value=${one} selected=${one === value}>${text}</option>`)}
  </select><${FieldError} field=${field} /></label>`;
}

function NumberField({ field, standard }) {
  const { hint, whole } = boundsOf(field);
  return html`<label>${FIELD[field]}<input inputmode=${whole ? "numeric" : "decimal"} placeholder=${standard} title=${hint} autocomplete="off"
    value=${state.draft.settings[field] ?? ""} ...${asField(field)} onInput=${set(field)} /><${FieldError} field=${field} /></label>`;
}

export function Settings() {
  const chosen = model();
  if (!chosen) return html`<p class="soft waiting">Waiting for a worker: the server has no model yet. You can prepare everything meanwhile.</p>`;
  const { settings } = state.draft;
  const preset = chosen.presets.find((one) => one.id === (settings.preset ?? "exact"));
  const sizes = chosen.sizes.map((size) => [size, size.replace("x", " × ")]);
  return html`<details class="details"><summary>Settings</summary><div class="grid">
    ${state.models.length > 1 && html`<${Choice} field="model" value=${chosen.id} options=${state.models.map((one) => [one.id, one.id])} />`}
    <${Choice} field="size" value=${settings.size ?? chosen.sizes[0]} options=${sizes} />
    <${NumberField} field="num_inference_steps" standard=${preset?.num_inference_steps ?? chosen.defaults.num_inference_steps} />
    <${NumberField} field="guidance_scale" standard=${chosen.defaults.guidance_scale} />
    <${NumberField} field="flow_shift" standard=${chosen.defaults.flow_shift} />
    <${NumberField} field="product_scale" standard="1" />
    <${NumberField} field="seed" standard="random" />
    <label class="wide check"><input type="checkbox" checked=${settings.router_maps === "true"} onChange=${(event) => { edit((draft) => {
      if (event.target.checked) draft.settings.router_maps = "true"; else delete draft.settings.router_maps;
    }); checkSoon(); }} /> Keep where the model sees hands and face</label>
    ${state.draft.pose && html`<div class="wide row">${FIELD.pose_video}: ${state.draft.pose.name}
      <button type="button" class="plain" onClick=${() => { edit((draft) => { draft.pose = null; }); checkSoon(); }} aria-label="Remove the pose video">Remove</button></div>`}
    <label class="wide">${FIELD.negative_prompt}<textarea rows="2" dir="auto" placeholder=${chosen.defaults.negative_prompt}
      value=${settings.negative_prompt ?? ""} ...${asField("negative_prompt")} onInput=${set("negative_prompt")}></textarea></label>
  </div></details>`;
}
