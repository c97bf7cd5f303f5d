// Talking to the server: JSON, uploads with progress, event streams. Knows nothing about what is shown.

const KEY = "key";

/** The server has answered, with a refusal. */
export class Refused extends Error {
  constructor(status, problem = {}) {
    super(problem.detail || `The server answered with ${status}.`);
    Object.assign(this, { status, code: problem.code, field: problem.field, limit: problem.limit });
  }
}

/** No answer came: whether the server has done what it was asked for is not known. */
export class NoAnswer extends Error {
  constructor() {
    super("The server cannot be reached.");
  }
}

const onAnswer = new Set();
/** Call `listener(online, status)` after every try to reach the server. */
export const whenAnswered = (listener) => onAnswer.add(listener);
const answered = (online, status = 0) => onAnswer.forEach((listener) => listener(online, status));

export const apiKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
export const keyIsRemembered = () => localStorage.getItem(KEY) !== null;

export function useKey(key, remember) {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(KEY, key);
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

function headersWith(given = {}) {
  const headers = new Headers(given);
  if (apiKey()) headers.set("Authorization", `Bearer ${apiKey()}`);
  return headers;
}

async function answerTo(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headersWith(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    answered(false);
    throw new NoAnswer();
  }
  answered(true, response.status);
  return response;
}

/** The JSON that the server answers with. Throws Refused, NoAnswer, AbortError. */
export async function call(path, { json, ...options } = {}) {
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers = { ...options.headers, "Content-Type": "application/json" };
  }
  const response = await answerTo(path, options);
  if (!response.ok && path !== "/readyz") throw await refusalOf(response);
  try {
    return await response.json();
  } catch (error) { // it broke off on the way
    if (error.name === "AbortError") throw error;
    throw new NoAnswer();
  }
}

const refusalOf = async (response) => new Refused(response.status, await response.json().catch(() => ({})));

/** A file of the server as a Blob. Throws like `call`. */
export async function blobOf(path) {
  const response = await answerTo(path, {});
  if (!response.ok) throw await refusalOf(response);
  return response.blob();
}

/** Post a form and tell how many bytes have left. XMLHttpRequest, because fetch does not tell. */
export function upload(path, form, { headers = {}, onProgress = () => {}, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of headersWith(headers)) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onload = () => {
      answered(true, request.status);
      if (request.status < 300) resolve(request.response);
      else reject(new Refused(request.status, request.response ?? {}));
    };
    request.onerror = () => { answered(false); reject(new NoAnswer()); };
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    if (signal?.aborted) request.abort();
    else request.send(form);
  });
}

/** Call `onEvent(name, data)` for each server-sent event until the stream ends. EventSource cannot send the key. */
export async function events(path, onEvent, signal) {
  const response = await answerTo(path, { signal, headers: { Accept: "text/event-stream" } });
  if (!response.ok) throw await refusalOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const read = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (read("data")) onEvent(read("event"), JSON.parse(read("data")));
    }
  }
}
