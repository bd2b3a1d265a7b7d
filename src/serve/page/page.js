// Starts the page: its views, the list of models, and the parts.

import {models} from './api.js';
import {current, setLimits, showProblem, startChat} from './chat.js';
import {byId, element, rove} from './dom.js';
import {closeExperts, openExperts, startExperts} from './experts.js';
import {drawList, settingsChanged, startList} from './list.js';
import {applyTheme, openSettings, saveSettings, settings, startSettings} from './settings.js';
import {openStore} from './store.js';

function showView(tab) {
  for (const other of document.querySelectorAll('[role="tab"]')) {
    const chosen = other === tab;
    other.setAttribute('aria-selected', String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute('aria-controls')).hidden = !chosen;
  }
  if (tab.id === 'tab-experts') openExperts();
  else closeExperts();
}

async function loadModels() {
  let all;
  try {
    all = await models();
  } catch (error) {
    showProblem(error.message);
    if (error.status === 401) openSettings(current(), 'key');
    return;
  }
  showProblem('');
  setLimits(all);
  const name = (model) => model.parent ? `${model.id} (adapter of ${model.parent})` : model.id;
  byId('model').replaceChildren(...all.map((model) => element('option', {value: model.id}, name(model))));
  byId('model').value = all.some((model) => model.id === settings.model) ? settings.model : all[0]?.id;
}

async function start() {
  applyTheme();
  await openStore();
  startChat(drawList);
  startExperts();
  startSettings(current, async ({key}) => {
    await settingsChanged();
    if (key || byId('model').value === '') await loadModels();
  });
  await startList();
  for (const tab of document.querySelectorAll('[role="tab"]'))
    tab.addEventListener('click', () => showView(tab));
  rove(document.querySelector('[role="tablist"]'), '[role="tab"]', showView);
  byId('model').addEventListener('change', () => {
    settings.model = byId('model').value;
    saveSettings();
  });
  await loadModels();
}

start();
