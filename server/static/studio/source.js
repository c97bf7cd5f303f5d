// Where a player gets a job's pictures and sound from: the video, a stream that grows, or the file of what there is.

import { isOver } from "./words.js";

const AGAIN_MS = 2000;
const PLAYLIST = "application/vnd.apple.mpegurl";

/** { kind, address } of the best there is; null while there is nothing. */
export function sourceOf(job, links) {
  if (!links) return null;
  if (links.video) return { kind: "video", address: links.video };
  if (isOver(job)) return links.preview ? { kind: "preview", address: links.preview } : null;
  return links.stream ? { kind: "stream", address: links.stream } : null;
}

/** Whether the browser plays a list that grows. Safari does; Chromium says so too, and stalls on the first clips. */
const playsStreams = (player) => player.canPlayType(PLAYLIST) !== "" && "webkitSetPresentationMode" in player;

/** Play `source` in `player`, from `place` on: { time, plays }. When it breaks, calls `renew` at once and `again` a while later. Returns how to stop. */
export function attach(player, { kind, address }, place, renew, again) {
  let hls = null, stopped = false, timer = null;
  const { time, plays } = place;
  const broken = () => {
    if (timer) return;
    timer = setTimeout(again, AGAIN_MS);
    renew();
  };
  const loaded = () => {
    if (time > 0) player.currentTime = time;
    if (plays) player.play().catch(() => {});
  };
  player.addEventListener("error", broken);
  player.addEventListener("loadedmetadata", loaded, { once: true });
  if (kind !== "stream" || playsStreams(player)) player.src = address;
  else {
    import("../vendor/hls.js").then(({ default: Hls }) => {
      if (stopped) return;
      hls = new Hls({ enableWorker: false, startPosition: time }); // a worker made from text breaks the policy
      hls.on(Hls.Events.ERROR, (_, { fatal }) => { if (fatal) broken(); });
      hls.loadSource(address);
      hls.attachMedia(player);
    }).catch(broken);
  }
  return () => {
    stopped = true;
    clearTimeout(timer);
    player.removeEventListener("error", broken);
    player.removeEventListener("loadedmetadata", loaded);
    hls?.destroy();
  };
}
