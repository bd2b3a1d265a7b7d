// The experts: how their load is spread, and which of them made each token of a reply.

import {expertLoad} from './api.js';
import {current} from './chat.js';
import {byId, element, rove} from './dom.js';
import {shownTurns} from './store.js';

let timer = 0;
let paused = false;
let replies = [];  // of the conversation, with recorded tokens

export function startExperts() {
  byId('window').addEventListener('change', () => update(true));
  byId('pause').addEventListener('click', () => {
    paused = !paused;
    byId('pause').setAttribute('aria-pressed', String(paused));
    if (!paused) update(false);
  });
  byId('reply').addEventListener('change', drawTokens);
  rove(byId('tokens'), 'button', chooseToken);
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden && timer) update(false);
  });
}

/** Shows the view, which is drawn anew each second from now on. */
export function openExperts() {
  if (!timer) timer = setInterval(() => update(false), 1000);
  update(true);
  drawReplies();
}

export function closeExperts() {
  clearInterval(timer);
  timer = 0;
}

async function update(asked) {
  if ((paused && !asked) || document.hidden) return;
  try {
    drawLoad(await expertLoad(byId('window').value));
  } catch (error) {
    byId('load-summary').textContent = error.message;
  }
}

/** load: {layers, experts, experts_per_token, tokens, seconds, counts: [L][E]}. */
function drawLoad(load) {
  const speed = load.seconds > 0 ? `, ${(load.tokens / load.seconds).toFixed(1)} a second` : '';
  byId('load-summary').textContent = load.tokens > 0
    ? `${load.tokens.toLocaleString()} tokens${speed}` : 'no tokens in this time';
  const table = byId('heat');
  const cells = table.querySelectorAll('td');
  if (cells.length !== (load.layers + 1) * load.experts) buildTable(table, load);
  const even = load.experts_per_token / load.experts;
  const shares = load.counts.flatMap((row) => row.map((count) => load.tokens ? count / load.tokens : 0));
  // The even split lies at half of the scale, or lower where one expert takes more than twice that.
  const most = Math.max(2 * even, ...shares);
  const set = (cell, share) => {
    cell.textContent = (100 * share).toFixed(1);
    cell.style.setProperty('--share', `${(65 * share / most).toFixed(1)}%`);
  };
  const all = [...table.querySelectorAll('td')];
  all.slice(0, load.experts).forEach((cell) => set(cell, even));
  all.slice(load.experts).forEach((cell, index) => set(cell, shares[index]));
}

function buildTable(table, load) {
  const experts = [...Array(load.experts).keys()];
  const row = (name, kind) => element('tr', {class: kind}, element('th', {scope: 'row'}, name),
    ...experts.map(() => element('td')));
  table.replaceChildren(table.caption,
    element('thead', {}, element('tr', {}, element('th', {scope: 'col'}, 'Layer'),
      ...experts.map((e) => element('th', {scope: 'col'}, `Expert ${e}`)))),
    element('tbody', {}, row('even', 'even'),
      ...[...Array(load.layers).keys()].map((layer) => row(String(layer)))));
}

function drawReplies() {
  const turns = shownTurns(current());
  replies = turns.filter((turn) => turn.tokens?.length > 0);
  byId('tokens-none').hidden = replies.length > 0;
  byId('tokens-some').hidden = replies.length === 0;
  if (replies.length === 0) return;
  const before = byId('reply').value;
  byId('reply').replaceChildren(...replies.map((turn) => element('option', {value: turn.id},
    `${turns.indexOf(turn) + 1}: ${turn.text.slice(0, 40) || '(no text)'}`)));
  byId('reply').value = replies.some((turn) => turn.id === before) ? before : replies.at(-1).id;
  drawTokens();
}

const tokensOf = () => replies.find((turn) => turn.id === byId('reply').value).tokens;
const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)}%`;
const visible = (text) => text.replaceAll('\n', '⏎').replaceAll('\t', '⇥')
  .replace(/^ +$/, (spaces) => '␣'.repeat(spaces.length)).replace(/^$/, '∅');

function drawTokens() {
  byId('tokens').replaceChildren(...tokensOf().map((token, index) => {
    const button = element('button', {type: 'button', tabindex: -1, 'aria-pressed': 'false',
                                      'aria-label': `${visible(token.text)}, ${percent(token.logprob)}`,
                                      'data-index': index}, visible(token.text));
    button.style.setProperty('--share', `${(60 * (1 - Math.exp(token.logprob))).toFixed(1)}%`);
    button.addEventListener('click', () => chooseToken(button));
    return button;
  }));
  chooseToken(byId('tokens').firstChild);
}

function chooseToken(button) {
  for (const other of byId('tokens').querySelectorAll('[tabindex="0"]')) {
    other.tabIndex = -1;
    other.setAttribute('aria-pressed', 'false');
  }
  button.tabIndex = 0;
  button.setAttribute('aria-pressed', 'true');
  const index = Number(button.dataset.index);
  const token = tokensOf()[index];
  byId('token').replaceChildren(
    element('p', {}, `Token ${index + 1}: `, element('code', {}, visible(token.text)),
      `, probability ${percent(token.logprob)}`),
    alternativesTable(token), token.experts ? expertsTable(token.experts) : '');
}

function alternativesTable(token) {
  return element('table', {}, element('caption', {}, 'Most probable there'),
    element('thead', {}, element('tr', {}, element('th', {scope: 'col'}, 'Token'),
      element('th', {scope: 'col'}, 'Probability'))),
    element('tbody', {}, ...token.best.map(([text, logprob]) => element('tr', {},
      element('td', {class: 'text-cell'}, visible(text)), element('td', {}, percent(logprob))))));
}

function expertsTable({ids, weights}) {
  const choices = [...(ids[0] ?? []).keys()];
  return element('table', {}, element('caption', {}, 'Experts that made it, with their weights'),
    element('thead', {}, element('tr', {}, element('th', {scope: 'col'}, 'Layer'),
      ...choices.map((j) => element('th', {scope: 'col'}, j === 0 ? 'heaviest' : `choice ${j + 1}`)))),
    element('tbody', {}, ...ids.map((row, layer) => element('tr', {},
      element('th', {scope: 'row'}, String(layer)),
      ...row.map((expert, j) => element('td', {}, `${expert} (${(100 * weights[layer][j]).toFixed(0)}%)`))))));
}
