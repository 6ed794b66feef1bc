// Calls to the server that this page came from, with the key that the tab keeps, if there is one.

const KEY = "detinfer-api-key";

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

export function authorization() {
  const key = sessionStorage.getItem(KEY);
  // Headers hold bytes: those of UTF-8, which the server compares.
  return key ? { authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}` } : {};
}

export async function call(path, { body, signal } = {}) {
  const headers = { ...authorization(), "content-type": "application/json" };
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    response = await fetch(path, { method, headers, body: JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export const json = async (path, options) => (await call(path, options)).json();

// Server-sent events, until [DONE].
export async function* events(path, options) {
  const response = await call(path, options);
  let rest = "";
  for await (const text of chunks(response)) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let read; !(read = await reader.read()).done; ) yield read.value;
  } finally {
    reader.cancel().catch(() => {}); // leaving a stream ends its request
  }
}

async function refusal(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between the server and this page has answered.
  }
  if (response.status === 401) document.dispatchEvent(new Event("keyneeded"));
  return Object.assign(new Error(message), { status: response.status });
}
