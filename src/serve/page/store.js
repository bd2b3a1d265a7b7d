// Conversations: trees of turns, kept in this browser's IndexedDB.
//
// A conversation is {id, title, system, created, updated, turns, chosen}. `turns` maps ids to
// {id, parent, role, text, ...}; the first turns have the parent ''. `chosen` maps a parent to that
// of its turns which is shown: an edited or regenerated turn stands beside the old one.

const format = 'mixtral-conversations';
const version = 1;

let database = null;
const memory = new Map();  // in place of a database that the browser does not give

function wait(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export async function openStore() {
  try {
    const request = indexedDB.open('mixtral', 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('conversations', {keyPath: 'id'});
    };
    database = await wait(request);
  } catch {
    database = null;
  }
}

const table = (mode) => database.transaction('conversations', mode).objectStore('conversations');

/** All conversations, the latest first. */
export async function allConversations() {
  const all = database ? await wait(table('readonly').getAll()) : [...memory.values()];
  return all.sort((a, b) => b.updated - a.updated);
}

export async function save(conversation) {
  if (database) await wait(table('readwrite').put(conversation));
  else memory.set(conversation.id, structuredClone(conversation));
}

export async function remove(id) {
  if (database) await wait(table('readwrite').delete(id));
  else memory.delete(id);
}

// Not crypto.randomUUID, which a page without TLS on another host does not have.
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

export function newConversation() {
  const now = Date.now();
  return {id: newId(), title: '', system: '', created: now, updated: now, turns: {}, chosen: {}};
}

/** Adds a turn after another one ('': as the first), and shows it. */
export function addTurn(conversation, parent, role, text) {
  const turn = {id: newId(), parent, role, text, created: Date.now()};
  conversation.turns[turn.id] = turn;
  conversation.chosen[parent] = turn.id;
  conversation.updated = Date.now();
  return turn;
}

/** The turns beside a turn, itself too, the oldest first. */
export function branches(conversation, turn) {
  return Object.values(conversation.turns).filter((other) => other.parent === turn.parent)
    .sort((a, b) => a.created - b.created);
}

/** The turns that are shown, from the first on. */
export function shownTurns(conversation) {
  const shown = [];
  const seen = new Set();
  for (let at = '';;) {
    const next = conversation.turns[conversation.chosen[at]];
    if (!next || next.parent !== at || seen.has(next.id)) return shown;
    seen.add(next.id);
    shown.push(next);
    at = next.id;
  }
}

/** What a conversation is called in the list. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = shownTurns(conversation).find((turn) => turn.role === 'user');
  return first ? first.text.slice(0, 60) : 'New conversation';
}

export function exportText(conversations) {
  return JSON.stringify({format, version, conversations});
}

/** The conversations of an exported file, with new ids. Throws Error that says what is wrong. */
export function importText(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error('The file is not JSON.');
  }
  if (data?.format !== format || data.version !== version || !Array.isArray(data.conversations))
    throw new Error('The file has no conversations that this page has exported.');
  return data.conversations.map(checked);
}

function checked(conversation, index) {
  const fail = (what) => {
    throw new Error(`Conversation ${index + 1} of the file ${what}.`);
  };
  const isMap = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);
  if (!isMap(conversation) || !isMap(conversation.turns) || !isMap(conversation.chosen))
    fail('has no turns');
  const result = newConversation();
  for (const name of ['title', 'system']) {
    if (typeof conversation[name] !== 'string') fail(`has a ${name} that is no text`);
    result[name] = conversation[name];
  }
  for (const name of ['created', 'updated'])
    if (Number.isFinite(conversation[name])) result[name] = conversation[name];
  const entries = Object.entries(conversation.turns);
  for (const [id, turn] of entries) {
    if (!/^[0-9a-f]{1,64}$/.test(id) || !isMap(turn) || turn.id !== id || typeof turn.text !== 'string' ||
        !['user', 'assistant'].includes(turn.role) || !Number.isFinite(turn.created))
      fail('has a turn that cannot be read');
    if (turn.parent !== '' && !Object.hasOwn(conversation.turns, turn.parent))
      fail('has a turn that follows none');
    const {parent, role, created} = turn;
    result.turns[id] = {id, parent, role, text: turn.text, created, ...checkedDetails(turn)};
  }
  for (const [parent, child] of Object.entries(conversation.chosen))
    if (result.turns[child]?.parent === parent) result.chosen[parent] = child;
  return result;
}

/** Of what a turn says about how it was made: the parts of the right kinds. */
function checkedDetails(turn) {
  const result = {};
  for (const name of ['model', 'finish'])
    if (typeof turn[name] === 'string') result[name] = turn[name];
  for (const name of ['promptTokens', 'newTokens', 'perSecond', 'firstSeconds'])
    if (Number.isFinite(turn[name])) result[name] = turn[name];
  const isPair = (pair) => Array.isArray(pair) && typeof pair[0] === 'string' && Number.isFinite(pair[1]);
  const isRows = (rows) => Array.isArray(rows) &&
    rows.every((row) => Array.isArray(row) && row.every(Number.isFinite));
  if (Array.isArray(turn.tokens))
    result.tokens = turn.tokens.filter((token) => token && typeof token.text === 'string' &&
      Number.isFinite(token.logprob) && Array.isArray(token.best) && token.best.every(isPair) &&
      (!token.experts || (isRows(token.experts.ids) && isRows(token.experts.weights))));
  return result;
}
