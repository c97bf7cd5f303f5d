// The page of the service. Everything that comes from outside is shown with textContent, never as markup.

const $ = (selector, root = document) => root.querySelector(selector);
const POLL_MS = 1000;
const CLIP_SECONDS = 3.2;
const STAGES = {
  queued: "waiting", loading: "loading the model", encoding: "reading photos and speech",
  denoising: "painting", decoding: "developing", muxing: "adding the sound", done: "done",
};

// --- talking to the server --------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || `The server answered with ${status}.`);
    this.status = status;
    this.field = problem.field;
    this.limit = problem.limit;
  }
}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem("key");
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const response = await fetch(path, { ...options, headers });
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) $("#key-form").hidden = false;
  if (!response.ok && path !== "/readyz") throw new Refused(response.status, body);
  return body;
}

function uniqueKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- files: drop, pick, record ----------------------------------------------------------------------------

const files = { person_image: null, product_image: null, audio: null };

function setUp(zone, name, show) {
  const input = $("input", zone);
  const take = (file) => {
    if (!file) return;
    files[name] = file;
    zone.classList.add("filled");
    show(zone, file);
  };
  input.addEventListener("change", () => take(input.files[0]));
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  return take;
}

function showImage(zone, file) {
  const image = $("img", zone);
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.hidden = false;
  $(".hint", zone).hidden = true;
}

function showAudio(zone, file) {
  $(".hint span", zone).textContent = file.name;
  const player = $("#audio-preview");
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  player.hidden = false;
  player.onloadedmetadata = () => {
    if (!Number.isFinite(player.duration)) return;
    const clips = Math.max(1, Math.ceil(player.duration / CLIP_SECONDS - 0.01));
    $(".hint span", zone).textContent = `${file.name}: ${player.duration.toFixed(1)} s, ${clips} clip${clips > 1 ? "s" : ""}`;
  };
}

setUp($("#drop-person"), "person_image", showImage);
setUp($("#drop-product"), "product_image", showImage);
const takeAudio = setUp($("#drop-audio"), "audio", showAudio);

// Browsers record in formats of their own; the service gets plain WAV.
function asWav(buffer) {
  const samples = buffer.getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + samples.length * 2, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, buffer.sampleRate, true); view.setUint32(28, buffer.sampleRate * 2, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, i) => view.setInt16(44 + i * 2, Math.max(-1, Math.min(1, sample)) * 0x7fff, true));
  return new File([view], "recording.wav", { type: "audio/wav" });
}

let recorder = null;
$("#record").addEventListener("click", async () => {
  const button = $("#record");
  if (recorder) { recorder.stop(); return; }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      button.classList.remove("recording");
      $(".text", button).textContent = "Record";
      const context = new AudioContext();
      takeAudio(asWav(await context.decodeAudioData(await new Blob(parts).arrayBuffer())));
      await context.close();
    };
    recorder.start();
    button.classList.add("recording");
    $(".text", button).textContent = "Stop";
  } catch {
    fail("The microphone cannot be used here. Choose a file instead.");
  }
});

// --- the form ---------------------------------------------------------------------------------------------

function addPrompt() {
  const list = $("#prompts");
  const number = list.children.length;
  const label = document.createElement("label");
  label.className = "prompt";
  const title = document.createElement("span");
  title.textContent = number === 0 ? "What happens?" : `… from ${(number * CLIP_SECONDS).toFixed(1)} s on`;
  const area = document.createElement("textarea");
  area.maxLength = 4000;
  area.placeholder = "A woman in a bright kitchen lifts the teapot and shows it to the camera.";
  label.append(title, area);
  list.append(label);
  return area;
}
addPrompt();
$("#add-prompt").addEventListener("click", () => addPrompt().focus());

function fail(text) {
  const line = $("#form-error");
  line.textContent = text;
  line.hidden = !text;
}

let attempt = null; // the same click again, after a lost answer, is the same job
$("#form").addEventListener("input", () => { attempt = null; });
$("#form").addEventListener("submit", async (event) => {
  event.preventDefault();
  fail("");
  const prompts = [...document.querySelectorAll("#prompts textarea")].map((area) => area.value.trim()).filter(Boolean);
  if (!files.person_image) return fail("A photo of the person is needed.");
  if (!files.audio) return fail("Speech is needed: choose a file or record it.");
  if (!prompts.length) return fail("Say in a sentence what happens.");
  const body = new FormData();
  for (const [name, file] of Object.entries(files)) if (file) body.append(name, file);
  prompts.forEach((prompt) => body.append("prompt", prompt));
  for (const name of ["model", "size", "preset", "num_inference_steps", "guidance_scale", "seed", "fit"]) {
    const value = $(`#${name}`).value.trim();
    if (value) body.append(name, value);
  }
  const button = $("#submit");
  button.disabled = true;
  button.textContent = "Sending…";
  attempt ??= uniqueKey();
  try {
    const job = await call("/v1/generate", { method: "POST", body, headers: { "Idempotency-Key": attempt } });
    attempt = null;
    follow(job);
    await listJobs();
  } catch (error) {
    fail(error instanceof Refused && error.field ? `${error.field}: ${error.message}` : error.message);
  } finally {
    button.disabled = false;
    button.textContent = "Make the video";
  }
});

// --- one job ----------------------------------------------------------------------------------------------

let followed = null;

function follow(job) {
  followed = job.id;
  const card = $("#current");
  card.hidden = false;
  $("video", card).hidden = true;
  $("video", card).removeAttribute("src");
  $(".links", card).hidden = true;
  show(job);
  card.scrollIntoView({ behavior: "smooth", block: "nearest" });
  if (!isOver(job)) setTimeout(() => poll(job.id), POLL_MS);
}

const isOver = (job) => ["succeeded", "failed", "canceled"].includes(job.status);

async function poll(id) {
  if (followed !== id) return;
  try {
    const job = await call(`/v1/jobs/${id}`);
    if (followed !== id) return;
    show(job);
    if (isOver(job)) { await listJobs(); return; }
  } catch (error) {
    if (error instanceof Refused && error.status === 404) { $("#current").hidden = true; return; }
  }
  setTimeout(() => poll(id), POLL_MS);
}

function remaining(job) {
  if (!job.estimated_finish_at) return "";
  const seconds = Math.max(0, (new Date(job.estimated_finish_at) - Date.now()) / 1000);
  return seconds < 90 ? `about ${Math.ceil(seconds)} s left` : `about ${Math.ceil(seconds / 60)} min left`;
}

let models = [];
const noteOf = (name) => models.find((model) => model.id === name)?.note ?? "";

async function show(job) {
  const card = $("#current");
  const titles = { queued: "Waiting", processing: "Making your video", succeeded: "Your video", failed: "It did not work", canceled: "Canceled" };
  $("h2", card).textContent = titles[job.status];
  $("progress", card).value = job.progress;
  $("progress", card).hidden = isOver(job);
  $(".cancel", card).hidden = isOver(job);
  const parts = [];
  if (job.status === "queued") parts.push(job.queue_position ? `number ${job.queue_position} in the queue` : "in the queue");
  if (job.status === "processing") {
    parts.push(STAGES[job.stage], `clip ${Math.min(job.clip + 1, job.num_clips)} of ${job.num_clips}`);
    if (job.stage === "denoising") parts.push(`step ${job.step} of ${job.num_steps}`);
  }
  if (!isOver(job)) parts.push(remaining(job));
  if (job.error) parts.push(job.error.message);
  if (job.status === "succeeded") parts.push(`${job.duration_s?.toFixed(1)} s`, job.params.size, `seed ${job.seed}`);
  if (!job.checkpoint.trained) parts.push("untrained demo model: expect noise, not a person");
  $(".detail", card).textContent = parts.filter(Boolean).join(" · ");
  $(".note", card).textContent = noteOf(job.checkpoint.name);
  const video = $("video", card);
  if (job.status === "succeeded" && video.hidden) {
    const links = await call(`/v1/jobs/${job.id}/signed-urls`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ expires_in: 86400 }),
    });
    video.src = links.video;
    video.hidden = false;
    $(".links", card).hidden = false;
    $(".links a", card).href = links.video;
    $(".links a", card).download = `${job.id}.mp4`;
  }
}

$("#current .cancel").addEventListener("click", async () => {
  if (followed) await call(`/v1/jobs/${followed}/cancel`, { method: "POST" }).then(show).catch((error) => fail(error.message));
});

// --- all jobs ---------------------------------------------------------------------------------------------

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

function row(job) {
  const item = document.createElement("li");
  item.dataset.id = job.id;
  const what = document.createElement("div");
  what.className = "what";
  const prompt = document.createElement("span");
  prompt.className = "prompt-text";
  prompt.textContent = job.params.prompts[0];
  const meta = document.createElement("span");
  meta.className = `meta status-${job.status}`;
  meta.textContent = `${job.status} · ${new Date(job.created_at).toLocaleString()}`;
  what.append(prompt, meta);
  item.append(what, button("Show", () => follow(job)), button("Delete", async () => {
    if (!confirm("Delete this video for good?")) return;
    await call(`/v1/jobs/${job.id}`, { method: "DELETE" });
    if (followed === job.id) { followed = null; $("#current").hidden = true; }
    await listJobs();
  }));
  return item;
}

let shown = 10;
async function listJobs() {
  const page = await call(`/v1/jobs?limit=${Math.min(100, shown)}`);
  $("#jobs ul").replaceChildren(...page.data.map(row));
  $("#jobs").hidden = page.data.length === 0;
  $("#more").hidden = !page.has_more || shown >= 100;
  return page.data;
}
$("#more").addEventListener("click", () => { shown += 20; listJobs(); });

// --- start ------------------------------------------------------------------------------------------------

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    return option;
  }));
}

function presetText(preset) {
  const times = preset.num_inference_steps / preset.num_computed_steps;
  return [preset.id, times > 1 ? `${preset.id} (${times.toFixed(1)}× fewer passes)` : preset.id];
}

async function loadModels() {
  models = (await call("/v1/models")).data;
  models.sort((a, b) => b.default - a.default);
  options($("#model"), models.map((model) => [model.id, model.trained ? model.id : `${model.id} (untrained)`]));
  const choose = () => {
    const model = models.find((one) => one.id === $("#model").value);
    options($("#preset"), (model ? model.presets : []).filter((preset) => preset.id !== "parity").map(presetText));
    options($("#size"), (model ? model.sizes : []).map((size) => [size, size.replace("x", " × ")]));
    $("#form .note").textContent = noteOf($("#model").value);
  };
  $("#model").addEventListener("change", choose);
  choose();
}

async function health() {
  const dot = $("#health .dot"), text = $("#health .text");
  try {
    const state = await call("/readyz");
    dot.className = `dot ${state.ready ? "good" : "wait"}`;
    text.textContent = state.ready ? `${state.workers} worker${state.workers > 1 ? "s" : ""} ready`
      : !state.redis ? "the queue is down" : !state.storage ? "out of disk space"
      : state.problems.length ? state.problems[0] : state.failing_workers ? "a worker cannot work; its log says why" : "waiting for a worker";
  } catch {
    dot.className = "dot bad";
    text.textContent = "no connection";
  }
}

async function start() {
  await loadModels();
  const jobs = await listJobs();
  const open = jobs.find((job) => !isOver(job));
  if (open) follow(open);
}

$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("#key").value.trim());
  $("#key-form").hidden = true;
  start().catch((error) => fail(error.message));
});

health();
setInterval(health, 5000);
start().catch((error) => { if (error.status !== 401) fail(error.message); });
