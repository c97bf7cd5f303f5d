// Plays the draft's speech, all of it or a slice.

import { urlOf } from "./parts.js";
import { change, state } from "./store.js";

const player = new Audio();
let until = 0, watching = 0;

function watch() {
  if (player.currentTime >= until || player.ended) return stopSpeech();
  watching = requestAnimationFrame(watch);
}

export function stopSpeech() {
  cancelAnimationFrame(watching);
  player.pause();
  if (state.playing?.speech !== undefined) change((now) => { now.playing = null; });
}

/** Play from one second to another; `what` says which button shows it: "all", or a clip's number. */
export async function playSpeech(what, from, to) {
  stopSpeech();
  const address = urlOf(state.draft.speech.file);
  if (player.src !== address) player.src = address;
  player.currentTime = from;
  until = to;
  change((now) => { now.playing = { speech: what }; });
  try {
    await player.play();
    watching = requestAnimationFrame(watch);
  } catch {
    stopSpeech();
  }
}
