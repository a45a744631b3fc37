// What an application does with the AWS SDK for JavaScript v3, against the endpoint in argv[2]. It prints "done" if
// every answer was as it must be.
import { createRequire } from "node:module";
import { strict as assert } from "node:assert";
const ga = createRequire(process.argv[3] + "/")("@aws-sdk/client-global-accelerator");

const client = new ga.GlobalAcceleratorClient({ endpoint: process.argv[2], region: "us-west-2", maxAttempts: 1 });
const ask = (name, input = {}) => client.send(new ga[name + "Command"](input));
const refused = async (name, input, code) => {
  try {
    await ask(name, input);
  } catch (err) {
    assert.equal(err.name, code);
    assert.ok(err instanceof ga[code], "the SDK knows the error as its own class");
    return;
  }
  assert.fail(name + " was taken");
};

const { Accelerator: a } = await ask("CreateAccelerator", { Name: "js", Enabled: true, Tags: [{ Key: "k", Value: "v" }] });
assert.equal(a.Status, "IN_PROGRESS");
assert.ok(a.CreatedTime instanceof Date && Date.now() - a.CreatedTime < 60_000);
assert.equal(a.IpSets[0].IpAddresses.length, 2);
const { Listener: l } = await ask("CreateListener", {
  AcceleratorArn: a.AcceleratorArn, Protocol: "TCP", PortRanges: [{ FromPort: 443, ToPort: 443 }] });
const { EndpointGroup: g } = await ask("CreateEndpointGroup", {
  ListenerArn: l.ListenerArn, EndpointGroupRegion: "us-east-1", TrafficDialPercentage: 33.5,
  EndpointConfigurations: [{ EndpointId: "10.0.0.1", Weight: 10 }] });
assert.equal(g.TrafficDialPercentage, 33.5);
assert.equal(g.EndpointDescriptions[0].Weight, 10);
await ask("UpdateEndpointGroup", { EndpointGroupArn: g.EndpointGroupArn, EndpointConfigurations: [] });
const { EndpointGroup: empty } = await ask("DescribeEndpointGroup", { EndpointGroupArn: g.EndpointGroupArn });
assert.equal(empty.EndpointDescriptions.length, 0);
let listed = 0;
for await (const page of ga.paginateListAccelerators({ client, pageSize: 1 }, {})) listed += page.Accelerators.length;
assert.equal(listed, 1);
assert.deepEqual((await ask("ListTagsForResource", { ResourceArn: a.AcceleratorArn })).Tags, [{ Key: "k", Value: "v" }]);
assert.deepEqual((await ask("ListByoipCidrs")).ByoipCidrs, []);
const { CrossAccountAttachment: s } = await ask("CreateCrossAccountAttachment", { Name: "js", Principals: [a.AcceleratorArn] });
assert.deepEqual(s.Principals, [a.AcceleratorArn]);
await ask("DeleteCrossAccountAttachment", { AttachmentArn: s.AttachmentArn });
await refused("DescribeCrossAccountAttachment", { AttachmentArn: s.AttachmentArn }, "AttachmentNotFoundException");
await refused("AdvertiseByoipCidr", { Cidr: "192.0.2.0/24" }, "ByoipCidrNotFoundException");
await refused("DeleteListener", { ListenerArn: l.ListenerArn }, "AssociatedEndpointGroupFoundException");
await refused("DeleteAccelerator", { AcceleratorArn: a.AcceleratorArn }, "AcceleratorNotDisabledException");
await ask("DeleteEndpointGroup", { EndpointGroupArn: g.EndpointGroupArn });
await ask("DeleteListener", { ListenerArn: l.ListenerArn });
await ask("UpdateAccelerator", { AcceleratorArn: a.AcceleratorArn, Enabled: false });
await ask("DeleteAccelerator", { AcceleratorArn: a.AcceleratorArn });
await refused("DescribeAccelerator", { AcceleratorArn: a.AcceleratorArn }, "AcceleratorNotFoundException");
console.log("done");
