// Where the network saw hands (red) and faces (green), laid over the picture, if the job has kept it.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { clipSecondsOf } from "./jobs.js";
import { change, state } from "./store.js";

const APART_S = 0.08; // so far the map may be behind the picture
const EVENTS = ["timeupdate", "seeking", "seeked", "play", "pause", "loadeddata"];

export const hasMaps = (links) => Boolean(links?.router_maps.some(Boolean));

/** A map lasts as long as its clip: it follows the player's time within the clip that is shown. */
export function MapOverlay({ job, links }) {
  const map = useRef(null);
  const [clip, setClip] = useState(0);
  const length = clipSecondsOf(job);
  useEffect(() => {
    const player = document.querySelector(`.screen video[data-job=${job.id}]`);
    if (!player) return undefined;
    const follow = () => {
      const shown = Math.max(0, Math.min(links.router_maps.length - 1, Math.floor(player.currentTime / length)));
      setClip(shown);
      if (!map.current) return;
      const at = player.currentTime - shown * length;
      if (Math.abs(map.current.currentTime - at) > APART_S) map.current.currentTime = at;
      if (player.paused) map.current.pause();
      else map.current.play().catch(() => {});
    };
    EVENTS.forEach((name) => player.addEventListener(name, follow));
    follow();
    return () => EVENTS.forEach((name) => player.removeEventListener(name, follow));
  });
  const address = links.router_maps[clip];
  return address && html`<video class="map" key=${clip} ref=${map} src=${address} muted playsinline preload="auto" tabindex="-1" aria-hidden="true"></video>`;
}

export const MapSwitch = () => html`<button type="button" class="link" aria-pressed=${state.mapsShown ? "true" : "false"}
  onClick=${() => change((now) => { now.mapsShown = !now.mapsShown; })}>${state.mapsShown ? "Hide" : "Show"} where the model sees hands and face</button>`;
