// fly-admin, every call that it has, against the server at CASTOFF_URL; what each answered goes to stdout as one JSON document.
'use strict'
const { default: Client } = require(`${process.env.CASTOFF_FLY_ADMIN}/dist/client.js`)
const url = process.env.CASTOFF_URL
const fly = new Client(process.env.CASTOFF_TOKEN, { graphqlUrl: url, apiUrl: url })
const said = {}

async function did(name, promise) {
  try {
    said[name] = await promise
  } catch (error) {
    said[name] = { failed: error.message }
  }
  return said[name]
}

async function main() {
  const app_name = 'admin'
  await did('createApp', fly.App.createApp({ app_name, org_slug: 'personal' }))
  await did('createAppAgain', fly.App.createApp({ app_name, org_slug: 'personal' }))
  await did('listApps', fly.App.listApps('personal'))
  await did('getApp', fly.App.getApp(app_name))
  await did('getAppDetailed', fly.App.getAppDetailed(app_name))
  await did('getOrganization', fly.Organization.getOrganization('personal'))
  await did('getRegions', fly.Regions.getRegions())
  await did('setSecrets', fly.Secret.setSecrets({ appId: app_name, secrets: [{ key: 'A', value: '1' }, { key: 'B', value: '2' }] }))
  await did('unsetSecrets', fly.Secret.unsetSecrets({ appId: app_name, keys: ['A'] }))
  await did('allocateIpAddress', fly.Network.allocateIpAddress({ appId: app_name, type: 'v4' }))

  const volume = await did('createVolume', fly.Volume.createVolume({ app_name, name: 'data', region: 'local', size_gb: 1 }))
  const volume_id = volume.id
  await did('listVolumes', fly.Volume.listVolumes(app_name))
  await did('getVolume', fly.Volume.getVolume({ app_name, volume_id }))
  await did('extendVolume', fly.Volume.extendVolume({ app_name, volume_id, size_gb: 2 }))
  await did('listSnapshots', fly.Volume.listSnapshots({ app_name, volume_id }))

  const config = {
    image: process.env.CASTOFF_IMAGE,
    env: { GREETING: 'hello' },
    init: { exec: ['sleep', '1000'] },
    guest: { cpu_kind: 'shared', cpus: 1, memory_mb: 256 },
    restart: { policy: 'no' },
    mounts: [{ volume: volume_id, path: '/data' }],
  }
  const machine = await did('createMachine', fly.Machine.createMachine({ app_name, name: 'one', config }))
  const one = { app_name, machine_id: machine.id }
  const wait = (name, state, more = {}) => did(name, fly.Machine.waitMachine({ ...one, state, timeout: '60s', ...more }))
  await wait('waitStarted', 'started')
  await did('getMachine', fly.Machine.getMachine(one))
  await did('listMachines', fly.Machine.listMachines(app_name))
  await did('listProcesses', fly.Machine.listProcesses({ ...one, sort_by: 'pid', order: 'asc' }))
  await did('listVersions', fly.Machine.listVersions(one))
  await did('cordonMachine', fly.Machine.cordonMachine(one))
  await did('uncordonMachine', fly.Machine.uncordonMachine(one))
  await did('restartMachine', fly.Machine.restartMachine({ ...one, timeout: '5s' }))
  await wait('waitRestarted', 'started')
  const updated = await did('updateMachine', fly.Machine.updateMachine({ ...one, config: { ...config, env: { GREETING: 'bye' } } }))
  await wait('waitUpdated', 'started', { instance_id: updated.instance_id })
  await did('signalMachine', fly.Machine.signalMachine({ ...one, signal: 'SIGKILL' }))
  await wait('waitSignalled', 'stopped', { instance_id: updated.instance_id })
  await did('startMachine', fly.Machine.startMachine(one))
  await wait('waitStartedAgain', 'started')
  await did('stopMachine', fly.Machine.stopMachine(one))
  await wait('waitStopped', 'stopped', { instance_id: updated.instance_id })
  await did('listEvents', fly.Machine.listEvents(one))
  await did('acquireLease', fly.Machine.acquireLease({ ...one, ttl: 60, description: 'mine' }))
  await did('getLease', fly.Machine.getLease(one))
  await did('startWithoutTheLease', fly.Machine.startMachine(one))

  const two = await did('createSecond', fly.Machine.createMachine({ app_name, name: 'two', config: { ...config, mounts: [] } }))
  await did('deleteSecond', fly.Machine.deleteMachine({ app_name, machine_id: two.id, force: true }))
  await did('waitDestroyed', fly.Machine.waitMachine({ app_name, machine_id: two.id, state: 'destroyed', timeout: '60' }))
  await did('listWithDeleted', fly.Machine.listMachines({ app_name, include_deleted: '' }))
  await did('deleteVolume', fly.Volume.deleteVolume({ app_name, volume_id }))
  await did('deleteApp', fly.App.deleteApp(app_name))
  process.stdout.write(JSON.stringify(said))
}

main()
