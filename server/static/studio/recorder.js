// The microphone: at most one recording at a time, and the microphone is released whatever happens.

import { change, state } from "./store.js";

let stream = null, recorder = null, wanted = false, ticking = null, context = null;

function release() {
  stream?.getTracks().forEach((track) => track.stop());
  clearInterval(ticking);
  context?.close();
  stream = recorder = context = null;
  change((now) => { now.recorder = "idle"; now.level = now.recordedFor = 0; });
}

function watch(began) {
  context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  ticking = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const level = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    change((now) => { now.level = level; now.recordedFor = (performance.now() - began) / 1000; });
  }, 100);
}

/** Start recording, or stop it: then `take(blob)`. Pressed while the browser still asks for permission, it gives up. */
export async function pressRecord(take, fail) {
  if (state.recorder === "recording") return recorder.stop();
  if (state.recorder !== "idle") { wanted = false; return; }
  wanted = true;
  change((now) => { now.recorder = "asking"; });
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    if (!wanted) return release();
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onerror = release;
    recorder.onstop = () => {
      release();
      if (parts.length) take(new Blob(parts, { type: parts[0].type }));
    };
    recorder.start(250);
    change((now) => { now.recorder = "recording"; });
    watch(performance.now());
  } catch {
    release();
    fail("The microphone cannot be used here. Allow it in the browser, or choose a file.");
  }
}

/** Give up what is being recorded: nobody waits for it any more. */
export function abandonRecording() {
  wanted = false;
  if (recorder) recorder.onstop = null;
  if (stream) release();
}

addEventListener("pagehide", abandonRecording);
