// Talks to the server that this page came from.

import {apiKey} from './settings.js';

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = {};
  if (options.body) headers['Content-Type'] = 'application/json';
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {...options, headers});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, 'The server does not answer.');
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message || message;
  } catch {
    // Not in the form of the server's own errors: a proxy's, say.
  }
  throw new ApiError(response.status, message);
}

/** The models and adapters that the server has. */
export async function models() {
  const all = (await (await request('v1/models')).json()).data;
  return all.filter((model) => (model.status?.value ?? 'loaded') === 'loaded');
}

/** The load of the experts in the last so many seconds, or since the start. */
export async function expertLoad(seconds) {
  const query = seconds ? `?window=${encodeURIComponent(seconds)}` : '';
  return (await request(`experts${query}`)).json();
}

/** The objects of a stream of server-sent events, up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) throw new ApiError(0, 'The connection was closed before the reply was complete.');
    held += value;
    let end;
    while ((end = held.indexOf('\n\n')) >= 0) {
      const lines = held.slice(0, end).split('\n');
      held = held.slice(end + 2);
      const data = lines.filter((line) => line.startsWith('data:'))
        .map((line) => line.slice(5).trimStart()).join('\n');
      if (data === '[DONE]') return;
      if (data) yield JSON.parse(data);
    }
  }
}

/** Streams a chat completion: calls `take` with each chunk. Stops when `signal` says so. */
export async function streamChat(body, signal, take) {
  const response = await request('v1/chat/completions', {
    method: 'POST',
    body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true}}),
    signal,
  });
  for await (const chunk of events(response)) {
    if (chunk.error) throw new ApiError(0, chunk.error.message);
    take(chunk);
  }
}
