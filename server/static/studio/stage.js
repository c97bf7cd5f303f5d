// The stage: what there is to see of the draft or of the open job, always in the frame's own shape.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { frameOf } from "./draft.js";
import { Framed } from "./ingredients.js";
import { clipSecondsOf } from "./jobs.js";
import { useLinks } from "./links.js";
import { Icon } from "./parts.js";
import { change, state } from "./store.js";
import { clipsDone, isOver, titleOf } from "./words.js";

const AGAIN_MS = 2000;

/** What the player plays: the whole video, or one finished clip after the other. */
function JobPlayer({ job, links }) {
  const video = useRef(null);
  const [clip, setClip] = useState(0);
  const [failures, setFailures] = useState(0);
  const whole = links?.video ?? null;
  const source = whole ?? links?.clips[clip] ?? null;
  const length = clipSecondsOf(job);
  const slice = state.playing?.job === job.id ? state.playing.clip : null;

  useEffect(() => { // a slice was asked for
    if (slice === null || !source) return;
    if (!whole && clip !== slice) return setClip(slice);
    const player = video.current;
    player.currentTime = whole ? slice * length : 0;
    player.play().catch(() => {});
  }, [slice, source]);

  const over = () => {
    if (slice !== null) return change((now) => { now.playing = null; });
    if (!whole && clip + 1 < (links?.clips.length ?? 0)) setClip(clip + 1);
  };
  const moved = (event) => {
    if (slice === null || !whole || event.target.currentTime < (slice + 1) * length - 0.05) return;
    event.target.pause();
    over();
  };
  const broken = () => setTimeout(() => setFailures(failures + 1), AGAIN_MS);
  if (!source) return null;
  return html`<video key=${`${job.id} ${whole ? "whole" : "clips"} ${failures}`} ref=${video} src=${source} controls playsinline preload="auto"
    autoplay=${!whole && clip > 0} aria-label=${`Video: ${titleOf(job).slice(0, 80)}`} data-job=${job.id}
    onEnded=${over} onTimeUpdate=${moved} onError=${broken}></video>`;
}

/** What is said over the picture, while there is nothing to play. */
function Veil({ job }) {
  if (state.problem[job.id]) return html`<div class="veil"><p>The video could not be fetched. Trying again…</p></div>`;
  if (clipsDone(job) > 0 || job.urls.video) return null;
  if (!isOver(job)) return html`<p class="caption">${job.status === "queued" ? "Waiting for its turn" : "The first clip will appear here"}</p>`;
  return html`<div class="veil"><${Icon} name=${job.status === "failed" ? "failed" : "film"} /><p>There is nothing to watch</p></div>`;
}

function JobScreen({ job }) {
  const links = useLinks(job);
  return html`${links && html`<img class=${`person ${job.params.fit}`} src=${links.inputs.person_image} alt="The person, as the video begins" />`}
    <${JobPlayer} key=${job.id} job=${job} links=${links} /><${Veil} job=${job} />`;
}

function DraftScreen() {
  const { person_image: person, product_image: product } = state.draft.photos;
  if (!person) {
    return html`<div class="veil invitation"><div class="trio" aria-hidden="true"><${Icon} name="person" /><${Icon} name="product" /><${Icon} name="speech" /></div>
      <p><b>Your presenter shows your product</b></p><p>Two photos, a recording and a sentence become a video.</p></div>`;
  }
  const fit = state.draft.settings.fit ?? "cover";
  return html`<div class=${`still ${fit}`}><${Framed} photo=${person} fit=${fit} name="The person, as the video will begin" /></div>
    ${product?.width ? html`<div class="inset"><${Framed} photo=${product} fit="contain" name="The product" /></div>` : null}`;
}

export function Screen({ job }) {
  const [width, height] = job ? [job.params.width, job.params.height] : frameOf(state.draft);
  return html`<div class="screen-place"><div class="screen" style=${{ aspectRatio: `${width} / ${height}`, "--shape": width / height }}>
    ${job ? html`<${JobScreen} job=${job} />` : html`<${DraftScreen} />`}
  </div></div>`;
}

/** Space plays and pauses, wherever no control has the focus. */
export function playOrPause() {
  const video = document.querySelector(".screen video");
  if (video) video.paused ? video.play().catch(() => {}) : video.pause();
  return Boolean(video);
}
