// Small pieces that several places of the page are made of.

import { html, useEffect, useRef } from "../vendor/htm-preact.js";
import { change, state, TOAST_MS } from "./store.js";

const urls = new WeakMap();

/** An address under which this page can show a file of its own. The browser forgets it with the page. */
export function urlOf(file) {
  if (!urls.has(file)) urls.set(file, URL.createObjectURL(file));
  return urls.get(file);
}

const SHAPES = {
  play: "M8 5v14l11-7z", pause: "M7 5h4v14H7zM13 5h4v14h-4z", bin: "M6 7h12l-1 13H7zM9 4h6l1 2H8z",
  person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zm-8 8c0-4 4-6 8-6s8 2 8 6z",
  product: "M9 3h6v3l2 3v11a1 1 0 0 1-1 1H8a1 1 0 0 1-1-1V9l2-3z",
  speech: "M12 15a3 3 0 0 0 3-3V6a3 3 0 0 0-6 0v6a3 3 0 0 0 3 3zm-6-4h2a4 4 0 0 0 8 0h2a6 6 0 0 1-5 5.9V20h-2v-3.1A6 6 0 0 1 6 11z",
  film: "M4 5h16v14H4zM6 7v2h2V7zm0 4v2h2v-2zm0 4v2h2v-2zm10-8v2h2V7zm0 4v2h2v-2zm0 4v2h2v-2z",
  done: "M9.5 16.6 5.4 12.5 4 13.9l5.5 5.5L20.5 8.4 19.1 7z", failed: "M11 4h2v10h-2zM11 17h2v3h-2z",
  add: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${SHAPES[name]} /></svg>`;

/** A sentence that belongs to a field: `describedBy` names it. */
export const FieldError = ({ field }) => (state.errors[field]
  ? html`<p class="error" id=${`error-${field}`}>${state.errors[field]}</p>` : null);

/** What makes a control the one of its field: errors are told there, and focused there. */
export const asField = (field) => ({
  "data-field": field,
  "aria-invalid": state.errors[field] ? "true" : undefined,
  "aria-describedby": state.errors[field] ? `error-${field}` : undefined,
});

export const FilePick = ({ label, accept, onFile, field }) => html`
  <label class="button plain">
    <input type="file" class="hidden-input" accept=${accept} ...${asField(field)}
      onChange=${(event) => { if (event.target.files[0]) onFile(event.target.files[0]); event.target.value = ""; }} />
    ${label}
  </label>`;

/** The outline of a sound as bars. `from` and `to` (0 to 1) are the part that counts. */
export function Waveform({ outline, from = 0, to = 1 }) {
  const canvas = useRef(null);
  useEffect(() => {
    const draw = () => drawBars(canvas.current, outline, from, to);
    draw();
    const observer = new ResizeObserver(draw);
    observer.observe(canvas.current);
    return () => observer.disconnect();
  }, [outline, from, to]);
  return html`<canvas class="waveform" ref=${canvas} aria-hidden="true"></canvas>`;
}

function drawBars(canvas, outline, from, to) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(canvas);
  const bars = Math.max(1, Math.floor(width / 4));
  for (let i = 0; i < bars; i++) {
    const part = outline.subarray(Math.floor((i / bars) * outline.length), Math.max(1, Math.ceil(((i + 1) / bars) * outline.length)));
    const tall = Math.max(2, Math.min(1, part.reduce((most, one) => Math.max(most, one), 0) * 1.4) * (height - 2));
    const counts = (i + 0.5) / bars >= from && (i + 0.5) / bars <= to;
    pen.fillStyle = counts ? style.getPropertyValue("--wave") : style.getPropertyValue("--edge");
    pen.beginPath();
    pen.roundRect(i * 4, (height - tall) / 2, 2.5, tall, 1.25);
    pen.fill();
  }
}

/** A ring that fills: `part` of 1. */
export const Ring = ({ part }) => html`
  <svg class="ring" viewBox="0 0 36 36" aria-hidden="true">
    <circle cx="18" cy="18" r="15" /><circle class="filled" cx="18" cy="18" r="15" pathLength="1" stroke-dasharray=${`${part} 1`} />
  </svg>`;

export function Toast() {
  const { toast } = state;
  useEffect(() => {
    if (!toast) return undefined;
    const timer = setTimeout(() => change((now) => { if (now.toast === toast) now.toast = null; }), TOAST_MS);
    return () => clearTimeout(timer);
  }, [toast]);
  return html`<div class="toast-place" role="status">${toast && html`<div class="toast">
    <span>${toast.text}</span>${toast.action && html`<button type="button" onClick=${toast.action}>${toast.label}</button>`}
  </div>`}</div>`;
}
