// The list of conversations, and their way out of this browser and into it.

import {current, draw, forget, show, showProblem} from './chat.js';
import {announce, ask, byId, download, element} from './dom.js';
import {allConversations, exportText, importText, newConversation, remove, save, shownTurns,
        titleOf} from './store.js';

let conversations = [];

/** Opens the latest conversation, or a new one. */
export async function startList() {
  conversations = await allConversations();
  byId('new').addEventListener('click', begin);
  byId('export').addEventListener('click', () => {
    download('conversations.json', exportText(conversations.filter(isKept)));
  });
  byId('export-one').addEventListener('click', () => {
    download('conversation.json', exportText([current()]));
  });
  byId('import').addEventListener('click', () => byId('import-file').click());
  byId('import-file').addEventListener('change', importFile);
  byId('delete').addEventListener('click', deleteCurrent);
  byId('show-list').addEventListener('click', () => {
    openList(!byId('list').classList.contains('open'));
  });
  byId('list').addEventListener('keydown', (event) => {
    if (event.key === 'Escape') openList(false);
  });
  if (conversations.length === 0) conversations.push(newConversation());
  show(conversations[0]);
  drawList();
}

const isKept = (conversation) => Object.keys(conversation.turns).length > 0;

/** On a narrow screen the list lies over the conversation. */
function openList(open) {
  const was = byId('list').classList.contains('open');
  byId('list').classList.toggle('open', open);
  byId('show-list').setAttribute('aria-expanded', String(open));
  if (open) byId('new').focus();
  else if (was) byId('show-list').focus();
}

function begin() {
  // An empty conversation is not kept beside another one.
  let empty = conversations.find((one) => !isKept(one));
  if (!empty) conversations.unshift(empty = newConversation());
  choose(empty);
}

function choose(conversation) {
  show(conversation);
  drawList();
  openList(false);
  byId('draft').focus();
}

export function drawList() {
  const focused = document.activeElement?.dataset?.conversation;
  conversations.sort((a, b) => b.updated - a.updated);
  byId('conversations').replaceChildren(...conversations.map((one) => element('li', {},
    element('button', {type: 'button', 'data-conversation': one.id, click: () => choose(one),
                       'aria-current': one === current() ? 'true' : null}, titleOf(one)))));
  if (focused)
    [...byId('conversations').querySelectorAll('button')]
      .find((button) => button.dataset.conversation === focused)?.focus();
}

async function importFile() {
  const [file] = byId('import-file').files;
  byId('import-file').value = '';
  if (!file) return;
  let added;
  try {
    added = importText(await file.text());
    for (const conversation of added) await save(conversation);
  } catch (error) {
    showProblem(`Nothing was imported. ${error.message}`);
    return;
  }
  if (added.length === 0) return;
  conversations.push(...added);
  choose(added[0]);
  announce(`${added.length} imported.`);
}

async function deleteCurrent() {
  const gone = current();
  const count = shownTurns(gone).length;
  if (count > 0 && !await ask(`Delete “${titleOf(gone)}”? It cannot be brought back.`, 'Delete')) return;
  forget(gone);
  await remove(gone.id);
  conversations = conversations.filter((one) => one !== gone);
  if (conversations.length === 0) conversations.push(newConversation());
  choose(conversations[0]);
  announce('Deleted.');
}

/** Keeps what the settings have changed of a conversation. */
export async function settingsChanged() {
  if (isKept(current())) await save(current());
  draw();
}
