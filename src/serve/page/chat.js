// The conversation that is shown: its turns, and the replies as they come.

import {streamChat} from './api.js';
import {announce, byId, element} from './dom.js';
import {render} from './markdown.js';
import {openSettings, samplingFields, settings} from './settings.js';
import {addTurn, branches, save, shownTurns, titleOf} from './store.js';

let conversation = null;
let running = null;   // {abort, turn, conversation} while a reply comes
let editing = null;   // the id of the turn that is being edited
let listChanged = () => {};
const forgotten = new WeakSet();  // conversations that are not to be kept any more
let limits = new Map();  // of a model: tokens of its context

export const current = () => conversation;

/** A conversation was deleted: a reply that still comes to it ends, and is not kept. */
export function forget(one) {
  forgotten.add(one);
  if (running?.conversation === one) stop();
}

/** Connects the composer. `changed` is called when the list of conversations is to be drawn anew. */
export function startChat(changed) {
  listChanged = changed;
  byId('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    send();
  });
  byId('draft').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId('stop').addEventListener('click', stop);
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && running && !document.querySelector('dialog[open]')) stop();
  });
  byId('title').addEventListener('change', () => {
    conversation.title = byId('title').value.trim();
    keep(conversation);
    listChanged();
  });
}

export function setLimits(models) {
  limits = new Map(models.map((model) => [model.id, model.context_length ?? model.max_model_len]));
}

/** Shows a conversation. A reply that still comes to another one goes on. */
export function show(other) {
  conversation = other;
  editing = null;
  showProblem('');
  draw();
  byId('scroll').scrollTop = byId('scroll').scrollHeight;
}

export function showProblem(text) {
  byId('problem').textContent = text;
  byId('problem').hidden = text === '';
}

/** Writes a conversation to the store; a browser that refuses is told about once. */
async function keep(one) {
  if (forgotten.has(one)) return;
  try {
    await save(one);
  } catch (error) {
    showProblem(`This browser does not keep the conversation: ${error.message}`);
  }
}

function send() {
  const text = byId('draft').value;
  if (running || text.trim() === '') return;
  byId('draft').value = '';
  const last = shownTurns(conversation).at(-1);
  const turn = addTurn(conversation, last ? last.id : '', 'user', text);
  reply(turn.id);
}

function stop() {
  if (running) running.abort.abort();
}

/** Asks for a reply to what is shown up to a turn; the reply stands beside older ones. */
async function reply(parent) {
  const messages = [];
  if (conversation.system) messages.push({role: 'system', content: conversation.system});
  for (const turn of shownTurns(conversation)) {
    messages.push({role: turn.role, content: turn.text});
    if (turn.id === parent) break;
  }
  const turn = addTurn(conversation, parent, 'assistant', '');
  turn.model = byId('model').value;
  turn.finish = 'interrupted';  // what a reload would find
  const body = {model: turn.model, messages, ...samplingFields()};
  if (settings.record) {
    Object.assign(body, {logprobs: true, top_logprobs: 5, experts: true});
    turn.tokens = [];
  }
  const mine = running = {abort: new AbortController(), turn, conversation};
  const fromButton = document.activeElement?.dataset?.action !== undefined;
  editing = null;
  showProblem('');
  draw();
  if (fromButton) byId('stop').focus();  // the button is gone until the reply is there
  listChanged();
  scrollDown(true);
  announce('The reply begins.');
  const progress = new Progress(mine);
  try {
    await streamChat(body, mine.abort.signal, (chunk) => progress.take(chunk));
  } catch (error) {
    if (error.name === 'AbortError') {
      turn.finish = 'stopped';
    } else {
      turn.finish = 'failed';
      if (error.status === 401) openSettings(conversation, 'key');
      showProblem(error.message);
    }
  }
  running = null;
  progress.end();
  const waits = document.activeElement === byId('stop');
  // A reply of which nothing came is none; what was shown before is shown again.
  if (turn.finish === 'failed' && turn.text === '') drop(mine.conversation, turn);
  await keep(mine.conversation);
  draw();
  listChanged();
  if (waits) (fromButton && actionOf(turn, 'again') || byId('draft')).focus();
}

/** The button that does something to a turn, where it is shown. */
function actionOf(turn, action) {
  return byId(`turn-${turn.id}`)?.querySelector(`[data-action^="${action}"]`);
}

function drop(one, turn) {
  delete one.turns[turn.id];
  const other = branches(one, turn).at(-1);
  if (other) one.chosen[turn.parent] = other.id;
  else delete one.chosen[turn.parent];
}

/** Puts the chunks of a reply together, and shows them at most once a frame. */
class Progress {
  constructor(run) {
    this.run = run;
    this.started = performance.now();
    this.first = this.last = 0;
    this.chunks = 0;
    this.said = 0;
    this.frame = 0;
    this.saved = this.started;
    byId('said').replaceChildren();
  }

  take(chunk) {
    const {turn} = this.run;
    if (chunk.usage) {
      turn.promptTokens = chunk.usage.prompt_tokens;
      turn.newTokens = chunk.usage.completion_tokens;
    }
    const choice = chunk.choices?.[0];
    if (!choice) return;
    if (choice.finish_reason) turn.finish = choice.finish_reason;
    const tokens = choice.logprobs?.content ?? [];
    tokens.forEach((token, index) => turn.tokens?.push(tokenOf(token, choice.experts?.[index])));
    if (choice.delta?.content || tokens.length > 0) {
      this.last = performance.now();
      if (!this.first) this.first = this.last;
      ++this.chunks;
    }
    if (choice.delta?.content) turn.text += choice.delta.content;
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const {turn} = this.run;
    const shown = byId(`turn-${turn.id}`);
    if (shown) {
      render(shown.querySelector('.text'), turn.text);
      shown.querySelector('.about').textContent = aboutOf(turn, this.speed());
      scrollDown(false);
    }
    this.say(false);
    if (performance.now() - this.saved > 3000) {
      this.saved = performance.now();
      keep(this.run.conversation);
    }
  }

  /** Tokens a second after the first, which waits for the prompt. A reply that came all at once
      says nothing of that: then it is the speed of the whole. */
  speed() {
    const {turn} = this.run;
    const count = turn.newTokens || turn.tokens?.length || this.chunks;
    if (count < 2) return undefined;
    const seconds = (this.last - this.first) / 1000;
    return seconds > 0.1 ? (count - 1) / seconds : 1000 * count / (this.last - this.started);
  }

  /** Gives screen readers whole sentences, each once. */
  say(all) {
    if (!settings.aloud || conversation !== this.run.conversation) return;
    const rest = this.run.turn.text.slice(this.said);
    const match = /^[\s\S]*[.!?…:\n](?=\s)/.exec(rest);
    const part = all ? rest : match ? match[0] : '';
    this.said += part.length;
    if (part.trim()) byId('said').append(element('p', {}, part));
  }

  end() {
    cancelAnimationFrame(this.frame);
    const {turn} = this.run;
    turn.perSecond = this.speed();
    if (this.first) turn.firstSeconds = (this.first - this.started) / 1000;
    this.say(true);
    announce(`The reply ended: ${finishName(turn.finish)}.`);
  }
}

/** What is kept of a token, from the entry of the log probabilities and of the experts. */
function tokenOf(entry, experts) {
  return {
    text: entry.token,
    logprob: entry.logprob,
    best: entry.top_logprobs.map((other) => [other.token, other.logprob]),
    experts: experts
      ? {ids: experts.ids, weights: experts.weights.map((row) => row.map((w) => Math.round(w * 1e4) / 1e4))}
      : undefined,
  };
}

function finishName(finish) {
  return {stop: 'complete', length: 'cut at the most tokens', stopped: 'stopped',
          failed: 'failed', interrupted: 'interrupted'}[finish] || finish || '';
}

function aboutOf(turn, speed = turn.perSecond) {
  const parts = [];
  if (turn.model) parts.push(turn.model);
  if (turn.promptTokens) parts.push(`${turn.promptTokens} + ${turn.newTokens} tokens`);
  if (speed) parts.push(`${speed.toFixed(1)} tokens/s`);
  if (turn.firstSeconds) parts.push(`first after ${turn.firstSeconds.toFixed(2)} s`);
  if (turn.finish && turn.finish !== 'stop' && running?.turn !== turn) parts.push(finishName(turn.finish));
  return parts.join(' · ');
}

const isAtEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 120;

function scrollDown(always) {
  const box = byId('scroll');
  if (always || isAtEnd(box)) box.scrollTop = box.scrollHeight;
}

/** Draws the conversation anew, with the focus where it was. */
export function draw() {
  const focused = document.activeElement?.dataset?.action;
  const turns = shownTurns(conversation);
  const box = byId('scroll');
  const atEnd = isAtEnd(box);
  byId('turns').replaceChildren(...turns.map(turnNode));
  byId('title').value = conversation.title;
  byId('title').placeholder = titleOf(conversation);
  byId('send').hidden = running !== null;
  byId('stop').hidden = running === null;
  const last = turns.findLast((turn) => turn.promptTokens);
  const limit = last && limits.get(last.model);
  byId('usage').textContent = last
    ? `${last.promptTokens + last.newTokens}${limit ? ` of ${limit}` : ''} tokens of context used.` : '';
  if (atEnd) box.scrollTop = box.scrollHeight;
  if (focused)
    [...document.querySelectorAll('[data-action]')].find((node) => node.dataset.action === focused)?.focus();
}

function turnNode(turn) {
  const name = turn.role === 'user' ? 'You' : 'Model';
  const busy = running?.turn === turn;
  const text = element('div', {class: 'text'});
  const tools = element('div', {class: 'tools'});
  if (editing === turn.id) {
    text.append(...editorOf(turn));
  } else {
    render(text, turn.text);
    if (busy && turn.text === '') text.append(element('p', {}));
    if (!busy) tools.append(...toolsOf(turn));
  }
  return element('li', {class: `turn ${turn.role}`, id: `turn-${turn.id}`, 'aria-busy': String(busy)},
    element('header', {}, element('h2', {}, name),
      element('span', {class: 'about'}, turn.role === 'assistant' ? aboutOf(turn) : '')),
    text, tools);
}

function toolsOf(turn) {
  const button = (action, label, click) => element('button', {
    type: 'button', 'data-action': `${action} ${turn.id}`, click, disabled: running !== null && action !== 'copy',
  }, label);
  const tools = [];
  const all = branches(conversation, turn);
  if (all.length > 1) {
    const at = all.indexOf(turn);
    const go = (to) => () => {
      conversation.chosen[turn.parent] = to.id;
      keep(conversation);
      draw();
      announce(`Version ${all.indexOf(to) + 1} of ${all.length}.`);
      byId(`turn-${to.id}`).querySelector(to === all[at - 1] ? '.before' : '.after')?.focus();
    };
    const step = (to, label, sign, kind) => element('button', {
      type: 'button', class: kind, 'aria-label': label, click: to && go(to),
      'aria-disabled': to ? null : 'true',
    }, sign);
    tools.push(step(all[at - 1], 'Version before', '‹', 'before'),
      element('span', {}, `${at + 1}/${all.length}`), step(all[at + 1], 'Version after', '›', 'after'));
  }
  tools.push(button('copy', 'Copy', async () => {
    try {
      await navigator.clipboard.writeText(turn.text);
      announce('Copied.');
    } catch {
      showProblem('This browser does not let the page copy.');
    }
  }));
  tools.push(button('edit', 'Edit', () => {
    editing = turn.id;
    draw();
    byId('edited').focus();
  }));
  if (turn.role === 'assistant') tools.push(button('again', 'Regenerate', () => reply(turn.parent)));
  else if (shownTurns(conversation).at(-1) === turn)
    tools.push(button('answer', 'Ask again', () => reply(turn.id)));
  return tools;
}

function editorOf(turn) {
  const area = element('textarea', {id: 'edited', rows: Math.min(12, turn.text.split('\n').length + 1),
                                    'aria-label': 'Edited text'});
  area.value = turn.text;
  const leave = () => {
    editing = null;
    draw();
    actionOf(turn, 'edit')?.focus();
  };
  area.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    event.stopPropagation();
    leave();
  });
  const done = () => {
    if (running || area.value.trim() === '') return;
    const added = addTurn(conversation, turn.parent, turn.role, area.value);
    editing = null;
    if (turn.role === 'user') {
      reply(added.id);
      byId('draft').focus();
      return;
    }
    added.finish = 'edited';
    keep(conversation);
    draw();
    byId('draft').focus();
  };
  return [area, element('div', {class: 'row'},
    element('button', {type: 'button', class: 'main', click: done}, turn.role === 'user' ? 'Send' : 'Save'),
    element('button', {type: 'button', click: leave}, 'Cancel'))];
}
