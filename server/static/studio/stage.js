// The stage: what there is to see of the draft or of the open job, always in the frame's own shape.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { frameOf } from "./draft.js";
import { TryExample } from "./example.js";
import { Framed } from "./ingredients.js";
import { clipSecondsOf, renewLinks } from "./jobs.js";
import { useLinks } from "./links.js";
import { hasMaps, MapOverlay } from "./maps.js";
import { Icon } from "./parts.js";
import { attach, sourceOf } from "./source.js";
import { change, state } from "./store.js";
import { beginning, clipsDone, isOver, titleOf } from "./words.js";

/** Plays the job: what is finished so far while it grows, then the video itself, from where one was. */
function JobPlayer({ job, links }) {
  const video = useRef(null);
  const place = useRef({ time: 0, plays: false });
  const [tries, setTries] = useState(0);
  const source = sourceOf(job, links);
  const length = clipSecondsOf(job);
  const slice = state.playing?.job === job.id ? state.playing.clip : null;

  useEffect(() => (source ? attach(video.current, source, place.current, () => renewLinks(job), () => setTries(tries + 1)) : undefined), [source?.kind, tries]);
  useEffect(() => { // a slice was asked for
    if (slice === null || !source) return;
    video.current.currentTime = slice * length;
    video.current.play().catch(() => {});
  }, [slice, source?.kind]);

  const over = () => { if (slice !== null) change((now) => { now.playing = null; }); };
  const moved = ({ target }) => {
    Object.assign(place.current, { time: target.currentTime, plays: !target.paused });
    if (slice === null || target.currentTime < (slice + 1) * length - 0.05) return;
    target.pause();
    over();
  };
  if (!source) return null;
  return html`<video ref=${video} controls playsinline preload="auto" poster=${links.posters[0]} aria-label=${`Video: ${beginning(titleOf(job), 80)}`} data-job=${job.id}
    data-kind=${source.kind} onEnded=${over} onTimeUpdate=${moved} onPause=${moved}></video>`;
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
    <${JobPlayer} key=${job.id} job=${job} links=${links} />
    ${state.mapsShown && hasMaps(links) && html`<${MapOverlay} key=${`map ${job.id}`} job=${job} links=${links} />`}<${Veil} job=${job} />`;
}

function DraftScreen() {
  const { person_image: person, product_image: product } = state.draft.photos;
  if (!person) {
    return html`<div class="veil invitation"><div class="trio" aria-hidden="true"><${Icon} name="person" /><${Icon} name="product" /><${Icon} name="speech" /></div>
      <p><b>Your presenter shows your product</b></p><p>Two photos, a recording and a sentence become a video.</p><${TryExample} /></div>`;
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
